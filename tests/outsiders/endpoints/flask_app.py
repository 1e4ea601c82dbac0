"""A cutoff endpoint as a Flask application."""

from flask import Flask

app = Flask(__name__)


@app.get("/")
def cutoff():
    return "", 204
