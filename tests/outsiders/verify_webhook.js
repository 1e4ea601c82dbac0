// Verifies calls with the reference library: reads {"secret", "calls": [{"headers", "body"}]}, prints what it found.
const { Webhook } = require("standardwebhooks");
const told = JSON.parse(require("fs").readFileSync(0, "utf8"));
const webhook = new Webhook(told.secret);
const made = told.calls.map(({ headers, body }) => {
  try {
    webhook.verify(body, headers);
    return body; // as it stands: its instants are beyond what a number of JavaScript holds
  } catch (error) {
    return { complaint: String(error) };
  }
});
process.stdout.write(JSON.stringify(made));
