// The scene by Go's net/rpc over the MessagePack-RPC codec of ugorji: HOST PORT USER.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/rpc"
	"os"

	"github.com/ugorji/go/codec"
)

type account struct {
	State            string `codec:"state"`
	BalanceNanos     int64  `codec:"balance_nanos"`
	RateNanosPerHour int64  `codec:"rate_nanos_per_hour"`
	DebitedNanos     int64  `codec:"debited_nanos"`
}

func main() {
	host, port, user := os.Args[1], os.Args[2], os.Args[3]
	connection, err := net.Dial("tcp", net.JoinHostPort(host, port))
	if err != nil {
		log.Fatal(err)
	}
	handle := &codec.MsgpackHandle{}
	handle.RawToString = true
	client := rpc.NewClientWithCodec(codec.MsgpackSpecRpc.ClientCodec(connection, handle))
	call := func(method string, params ...interface{}) (account, error) {
		var reply account
		err := client.Call(method, codec.MsgpackSpecRpcMultiArgs(params), &reply)
		return reply, err
	}
	must := func(method string, params ...interface{}) account {
		reply, err := call(method, params...)
		if err != nil {
			log.Fatal(method, ": ", err)
		}
		return reply
	}
	seen := map[string]interface{}{
		"topped_up": must("top_up", user, "5").BalanceNanos,
		"rate":      must("set_rate", user, 3600, map[string]string{"per": "hour", "resource": "vm"}).RateNanosPerHour,
		"debited":   must("debit", user, 2000000000).DebitedNanos,
	}
	if _, err := call("debit", user, "9"); err != nil {
		seen["refused"] = err.Error()
	}
	seen["state"] = must("get_account", user).State
	text, err := json.Marshal(seen)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(text))
}
