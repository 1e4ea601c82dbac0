// A client that was generated from the daemon's OpenAPI document plays the README's scene: tops up (twice with one
// key), reports a rate, asks how the account stands, why, and what happened, is charged and is refused. The types are
// the document's: whatever a line here uses and the document does not have ends the compilation.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema";

type Standing = components["schemas"]["Standing"];

function of<T>(told: { data?: T; error?: components["schemas"]["Problem"] }): T {
  if (told.data === undefined) throw new Error(`refused: ${told.error?.name}: ${told.error?.detail}`);
  return told.data;
}

async function main(): Promise<void> {
  const [, , baseUrl, user] = process.argv;
  const client = createClient<paths>({ baseUrl });
  const path = { user_id: user };
  const header = { "Idempotency-Key": `invoice-17 of ${encodeURIComponent(user)}` };
  const topUp = () => client.POST("/v1/accounts/{user_id}/top_up", { params: { path, header }, body: { amount: "5" } });
  const toppedUp: Standing = of(await topUp());
  const again = await topUp();
  const rated = of(
    await client.POST("/v1/accounts/{user_id}/set_rate", {
      params: { path },
      body: { rate: "0.36", per: "hour", resource: "vm-1" },
    }),
  );
  const account = of(await client.GET("/v1/accounts/{user_id}", { params: { path } }));
  const explained = of(await client.GET("/v1/accounts/{user_id}/explain", { params: { path } }));
  const debited = of(
    await client.POST("/v1/accounts/{user_id}/debit", { params: { path }, body: { amount_nanos: 2_000_000_000 } }),
  );
  const refused = await client.POST("/v1/accounts/{user_id}/debit", { params: { path }, body: { amount: "9" } });
  // @ts-expect-error: money is never a bare number, and the document's types know it
  const bare = await client.POST("/v1/accounts/{user_id}/debit", { params: { path }, body: { amount: 1 } });
  const page = of(await client.GET("/v1/accounts/{user_id}/history", { params: { path, query: { limit: 2 } } }));
  const rest = of(
    await client.GET("/v1/accounts/{user_id}/history", { params: { path, query: { cursor: page.next_cursor! } } }),
  );
  console.log(
    JSON.stringify({
      topped_up: toppedUp.balance,
      replayed: [of(again).replayed, again.response.headers.get("Idempotent-Replayed")],
      rate: rated.rate_per_hour,
      rates: account.rates_per_hour,
      state: account.state,
      bucket: explained.bucket_id === account.bucket_id,
      debited: debited.debited,
      refused: [refused.response.status, refused.error?.name, refused.error?.retry, refused.error?.applied],
      bare: [bare.response.status, bare.error?.name],
      history: [...page.history, ...rest.history].map((row) => row.operation),
    }),
  );
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
