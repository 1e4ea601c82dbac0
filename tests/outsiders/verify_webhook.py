"""Verifies calls with the reference library: reads {"secret", "calls": [{"headers", "body"}]}, prints what it found."""

import json
import sys

from standardwebhooks import Webhook, WebhookVerificationError

question = json.load(sys.stdin)
webhook = Webhook(question["secret"])
outcomes = []
for call in question["calls"]:
    try:
        webhook.verify(call["body"], call["headers"])
        outcomes.append(call["body"])
    except WebhookVerificationError as error:
        outcomes.append({"complaint": str(error)})
json.dump(outcomes, sys.stdout)
