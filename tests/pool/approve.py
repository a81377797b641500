#!/usr/bin/env python3
"""Approve, or decline, at our own issuer over HTTP, as a browser would:  approve.py USER [decline] < URL and code

Standard input: the URL on a line, then the code if there is one (else an empty line): both are secrets while they are
open, so they are no arguments.
"""
import json, sys, urllib.parse, urllib.request


def post(url, body, kind):
    return urllib.request.urlopen(urllib.request.Request(url, body.encode(), {"Content-Type": kind}))


user, approve = sys.argv[1], sys.argv[2:] != ["decline"]
url, code = sys.stdin.readline().strip(), sys.stdin.readline().strip()
if code:  # device flow: a form
    form = {"user_code": code, "user": user, "decision": "approve" if approve else "deny"}
    print(post(url, urllib.parse.urlencode(form), "application/x-www-form-urlencoded").status)
else:  # mytoken: the page posts JSON and is sent on
    page = urllib.request.urlopen(url).read().decode()
    wish = json.loads(page.split("const wish=")[1].split(";\n")[0].split(";async")[0])
    wish["user"] = user
    answer = json.loads(post(url, json.dumps(wish) if approve else "", "application/json").read())
    if approve:
        print(urllib.request.urlopen(answer["authorization_uri"]).status)
