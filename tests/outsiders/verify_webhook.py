"""Verifies calls with the reference library: reads {"secret", "calls": [{"headers", "body"}]}, prints what it found."""

import json
import sys

from standardwebhooks import Webhook, WebhookVerificationError

told = json.load(sys.stdin)
webhook = Webhook(told["secret"])
made = []
for call in told["calls"]:
    try:
        made.append(webhook.verify(call["body"], call["headers"]))
    except WebhookVerificationError as error:
        made.append(str(error))
json.dump(made, sys.stdout)
