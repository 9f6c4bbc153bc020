"""What scripts that measure share: their options, what they say, and what fio says."""

import json
import sys

from harness import check


def option(name, default):
    found = [word.split("=", 1)[1] for word in sys.argv[1:] if word.startswith(f"--{name}=")]
    return found[0] if found else default


def say(word, what):
    print(f"{word} {json.dumps(what)}", flush=True)


def rotated(all_of_them, by):
    by %= len(all_of_them)
    return all_of_them[by:] + all_of_them[:by]


def fio_said(text, op):
    """Rate and latencies of a run of fio, from its JSON."""
    job = json.loads(text[text.index("{") :])["jobs"][0]
    check(job["error"] == 0, f"fio: error {job['error']}")
    side = job[op]
    check(side["total_ios"] > 0, "fio did nothing")
    spread = side["clat_ns"].get("percentile", {})
    names = {"p50": "50.000000", "p99": "99.000000", "p99_9": "99.900000"}
    latency = {name: spread[key] / 1000 for name, key in names.items() if key in spread}
    return {"rate": side["iops"], "latency_us": latency}
