// A receiver of cutoffs, restores and notices on Go's standard library: switches machines off and on, and reports rate 0.
//
//	CUTOFF_SECRET=whsec_… PORT=8080 go run receiver.go
//
// The daemon has cutoff.url = "http://127.0.0.1:8080/cutoff", cutoff.restore_url = "http://127.0.0.1:8080/restore" and
// notify.url = "http://127.0.0.1:8080/notices".
package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	tolerance    = 5 * time.Minute
	eventIDsMax  = 100_000
	bodyBytesMax = 1 << 20
)

var errNotGenuine = errors.New("the call is not the daemon's, or too old")

// Call is a cutoff, or the restore that undoes it.
type Call struct {
	UserID        string `json:"user_id"`
	EventID       string `json:"event_id"` // the same on each attempt
	Seq           int64  `json:"seq"`
	ExhaustedAtNs int64  `json:"exhausted_at_ns"`
}

// IsRestore says whether the call undoes the cutoff of its seq.
func (call Call) IsRestore() bool { return strings.HasSuffix(call.EventID, ":restore") }

// place orders the calls of one user: a restore lies behind its cutoff, and before the next one.
func (call Call) place() int64 {
	if call.IsRestore() {
		return 2*call.Seq + 1
	}
	return 2 * call.Seq
}

// Notice is one event of an account.
type Notice struct {
	Type      string `json:"type"`
	Timestamp string `json:"timestamp"`
	Data      struct {
		UserID string `json:"user_id"`
	} `json:"data"`
}

// Receiver does what billing.client.receiver does in Python: the rules are told there and in docs/receiving-cutoffs.md.
// Keep places in your database, so that they outlive the process.
type Receiver struct {
	keys     [][]byte
	places   map[string]Call // user -> the last call that was acted on
	eventIDs map[string]bool // of notices that were acted on
	order    []string        // the same, the oldest first
}

// NewReceiver takes the text of the secrets file, with one secret or two.
func NewReceiver(secret string) (*Receiver, error) {
	receiver := &Receiver{places: map[string]Call{}, eventIDs: map[string]bool{}}
	for _, line := range strings.Split(secret, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(line, "whsec_"))
		if err != nil {
			return nil, fmt.Errorf("the secret is not base64: %w", err)
		}
		receiver.keys = append(receiver.keys, key)
	}
	if len(receiver.keys) == 0 {
		return nil, errors.New("no secret")
	}
	return receiver, nil
}

// verified returns the webhook-id of a request that is genuine; content is what was signed.
func (receiver *Receiver) verified(headers http.Header, content []byte, now time.Time) (string, error) {
	id, timestamp := headers.Get("webhook-id"), headers.Get("webhook-timestamp")
	sent, err := strconv.ParseInt(timestamp, 10, 64)
	if age := now.Sub(time.Unix(sent, 0)); err != nil || age > tolerance || age < -tolerance {
		return "", errNotGenuine
	}
	for _, key := range receiver.keys {
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.", id, timestamp)
		mac.Write(content)
		expected := []byte("v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		for _, given := range strings.Fields(headers.Get("webhook-signature")) {
			if hmac.Equal([]byte(given), expected) {
				return id, nil
			}
		}
	}
	return "", errNotGenuine
}

// Call returns the cutoff or restore that a request is; answer 401 where it returns an error.
func (receiver *Receiver) Call(request *http.Request, body []byte, now time.Time) (Call, error) {
	content := body
	if len(body) == 0 {
		content = []byte(request.RequestURI)
	}
	id, err := receiver.verified(request.Header, content, now)
	if err != nil {
		return Call{}, err
	}
	var call Call
	if len(body) > 0 {
		err = json.Unmarshal(body, &call)
	} else {
		query := request.URL.Query()
		call.UserID, call.EventID = query.Get("user_id"), query.Get("event_id")
		if !query.Has("user_id") { // where the path has it
			call.UserID, err = url.PathUnescape(strings.SplitN(id, ":", 2)[0])
		}
		var errSeq, errInstant error
		call.Seq, errSeq = strconv.ParseInt(query.Get("seq"), 10, 64)
		call.ExhaustedAtNs, errInstant = strconv.ParseInt(query.Get("exhausted_at_ns"), 10, 64)
		if errSeq != nil || errInstant != nil {
			err = errNotGenuine
		}
	}
	if err != nil || call.EventID != id {
		return Call{}, errNotGenuine
	}
	return call, nil
}

// IsDue says whether a call is still to be acted on; one that is not is answered with 2xx, too.
// A daemon whose machine was put back to a snapshot gives seqs again that it had given since, but at later instants.
func (receiver *Receiver) IsDue(call Call) bool {
	last := receiver.places[call.UserID]
	return call.place() > last.place() || call.ExhaustedAtNs > last.ExhaustedAtNs
}

// Done says that a call was acted on.
func (receiver *Receiver) Done(call Call) { receiver.places[call.UserID] = call }

// Notice returns the notice that a POST is and its event id, by which it is known: the same on each attempt.
func (receiver *Receiver) Notice(headers http.Header, body []byte, now time.Time) (Notice, string, error) {
	var notice Notice
	id, err := receiver.verified(headers, body, now)
	if err == nil {
		err = json.Unmarshal(body, &notice)
	}
	return notice, id, err
}

// Noticed says that the notice that is known by this was acted on.
func (receiver *Receiver) Noticed(id string) {
	receiver.eventIDs[id] = true
	receiver.order = append(receiver.order, id)
	if len(receiver.order) > eventIDsMax {
		delete(receiver.eventIDs, receiver.order[0])
		receiver.order = receiver.order[1:]
	}
}

// -- a server with it -------------------------------------------------------------------------------------------------

// daemon has a timeout shorter than cutoff.timeout_s: where the daemon is silent, its call is answered all the same, and
// the calls behind it go on.
var daemon = &http.Client{Timeout: 5 * time.Second}

// ask sends a request to the daemon's HTTP door and decodes its answer.
func ask(method, address, key string, body []byte, into any) error {
	request, err := http.NewRequest(method, address, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	if key != "" {
		request.Header.Set("Idempotency-Key", key)
	}
	if token := os.Getenv("BILLING_TOKEN"); token != "" { // where the daemon asks for one: with the role charge
		request.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := daemon.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s from the daemon", answer.Status)
	}
	return json.NewDecoder(answer.Body).Decode(into)
}

// switchOff stops the user's machines, then says that they cost nothing any more. It is harmless to do twice.
func switchOff(billing string, call Call) error {
	fmt.Println("off", call.UserID) // here the machines are stopped
	account := billing + "/v1/accounts/" + url.PathEscape(call.UserID)
	var found struct {
		Lines map[string]int64 `json:"rates_nanos_per_hour"`
	}
	if err := ask("GET", account, "", nil, &found); err != nil {
		return err
	}
	for resource := range found.Lines {
		body, _ := json.Marshal(map[string]string{"rate": "0", "resource": resource})
		key := fmt.Sprintf("%x", sha256.Sum256([]byte(call.EventID+"/"+resource))) // the same at each attempt
		var reply map[string]any
		if err := ask("POST", account+"/set_rate", key, body, &reply); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	billing := os.Getenv("BILLING")
	if billing == "" {
		billing = "http://127.0.0.1:3312"
	}
	receiver, err := NewReceiver(os.Getenv("CUTOFF_SECRET"))
	if err != nil {
		panic(err)
	}
	var lock sync.Mutex // one call at a time: simple, and right; lock by user where switching off takes long
	act := func(request *http.Request, body []byte) error {
		lock.Lock()
		defer lock.Unlock()
		if request.URL.Path == "/notices" {
			notice, id, err := receiver.Notice(request.Header, body, time.Now())
			if err != nil {
				return errNotGenuine
			}
			if !receiver.eventIDs[id] {
				fmt.Println("notice", notice.Type, notice.Data.UserID) // here the user is written to
				receiver.Noticed(id)
			}
			return nil
		}
		call, err := receiver.Call(request, body, time.Now())
		if err != nil || !receiver.IsDue(call) {
			return err
		}
		if call.IsRestore() {
			fmt.Println("on", call.UserID) // here the machines are started, and their rates reported
		} else if err := switchOff(billing, call); err != nil {
			return err
		}
		receiver.Done(call)
		return nil
	}
	handler := http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(response, request.Body, bodyBytesMax))
		if err == nil {
			err = act(request, body)
		}
		switch {
		case err == nil:
			response.WriteHeader(http.StatusNoContent)
		case errors.Is(err, errNotGenuine):
			response.WriteHeader(http.StatusUnauthorized)
		default:
			fmt.Fprintln(os.Stderr, request.URL.Path, err)
			response.WriteHeader(http.StatusServiceUnavailable) // the daemon calls again
		}
	})
	panic(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), handler))
}
