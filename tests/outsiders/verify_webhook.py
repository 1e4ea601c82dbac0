"""Verifies calls with the reference library: reads {"secret", "calls": [{"headers", "body"}]}, prints what it found."""

import json
import sys

from standardwebhooks import Webhook, WebhookVerificationError

told = json.load(sys.stdin)
webhook = Webhook(told["secret"])
made = []
for call in told["calls"]:
    try:
        webhook.verify(call["body"], call["headers"])
        made.append(call["body"])
    except WebhookVerificationError as error:
        made.append({"complaint": str(error)})
json.dump(made, sys.stdout)
