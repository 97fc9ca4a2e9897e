"""Judges what the emulated machine wrote: prints a line for each case, exits 1 if one is not as it was when this was
written.

    table.py NIC RESULTS

RESULTS has one "name value" a line; names begin with their case and may end with the phase they were seen in.
"""

import json
import sys

ZERO_COPY, COPY, SKB = "driver + zero-copy", "driver + copy", "skb + copy"
# Case, the rung it must stand on, what happens in it. Each phase is one set of questions.
CASES = [
    ("best", ZERO_COPY, ["", ".after-link", ".after-cable", ".after-mtu"], "link down, cable pulled, new MTU"),
    ("copy", COPY, ["", ".after-link"], "zero-copy = false; link down"),
    ("skb", SKB, ["", ".after-link"], 'xdp-mode = "skb"; link down'),
    ("tagged", ZERO_COPY, [""], "VLAN tag in the frame"),
    ("small", ZERO_COPY, ["", ".after-flood"], "512 frames; flooded"),
    ("busy", ZERO_COPY, ["", ".after-flood"], "busy polling; flooded"),
    ("down", ZERO_COPY, [""], "link down at start"),
    ("unplugged", ZERO_COPY, ["", ".after-return"], "NIC removed and back"),
]
BURST = 200
# One query each over IPv4 and IPv6, beside the burst; chronyd may be absent.
QUESTIONS = BURST + 2


def judge(case, rung, phases, seen):
    """What is wrong with a case, and the numbers for its line."""
    wrong = []

    def expect(name, *wanted):
        got = seen.get(case + name, "nothing")
        if got not in wanted:
            wrong.append(f"{name.lstrip('.')} is {got}, not {wanted[0]}")

    numbers = {"rung": "-", "zero": "-", "replies": 0, "sockets": 0, "balanced": "-"}
    for number, phase in enumerate(phases):
        for question in (".ipv4", ".ipv6"):
            expect(question + phase, "yes")
        for question in (".chronyd4", ".chronyd6"):
            expect(question + phase, "yes", "absent")
        expect(".burst" + phase, str(BURST))
        try:
            status = json.loads(seen[f"{case}.status{phase}"])
        except (KeyError, ValueError):
            wrong.append(f"no status{phase}")
            continue
        interface = status["interfaces"][0]
        queues = interface["queues"]
        worker = status["workers"]
        numbers["rung"] = interface["rung"]
        numbers["zero"] = "/".join("yes" if queue["zero_copy"] else "no" for queue in queues)
        numbers["replies"] = sum(one["af_xdp"]["replies"] for one in worker)
        numbers["sockets"] = sum(one["socket"]["replies"] for one in worker)
        balanced = all(queue["frames_balanced"] for queue in queues) and bool(queues)
        numbers["balanced"] = "yes" if balanced else "no"
        if interface["rung"] != rung:
            tried = "; ".join(f"{one['rung']}: {one['outcome']}" for one in interface["attempts"])
            wrong.append(f"rung{phase} is {interface['rung']}, not {rung} ({tried})")
        if any(queue["zero_copy"] != (rung == ZERO_COPY) for queue in queues):
            wrong.append(f"zero-copy{phase} is {numbers['zero']}")
        if any(queue["tx_metadata"] == queue["zero_copy"] for queue in queues):
            wrong.append("transmit stamps are promised in zero-copy mode, or not in copy mode")
        if not balanced or any(queue["counters"]["foreign"] for queue in queues):
            wrong.append(f"frames{phase} are not balanced")
        if numbers["replies"] < QUESTIONS * (number + 1):
            wrong.append(f"only {numbers['replies']} replies{phase} through AF_XDP")
        if numbers["sockets"]:
            wrong.append(f"{numbers['sockets']} replies{phase} by kernel sockets")
        closed = len(queues) * (2 if case == "unplugged" else 1)
    expect(".exit", "0")
    expect(".queues-closed", str(closed) if numbers["rung"] != "-" else "some")
    expect(".queues-astray", "0")
    expect(".program-left", "0")
    before, during, after = (seen.get(f"{case}.offload-{when}", "?") for when in ("before", "during", "after"))
    numbers["offload"] = f"{before}, {during}, {after}" if "fixed" not in before else before
    if not during.startswith("off") or before != after:
        wrong.append("the VLAN offload was not switched off and on again")
    return wrong, numbers


def main():
    nic, path = sys.argv[1:]
    with open(path, encoding="utf-8", errors="replace") as file:
        seen = dict(line.rstrip("\n").partition(" ")[::2] for line in file)
    failed = False
    print(f"\n{nic} ({seen.get('driver', 'no driver')}, Linux {seen.get('kernel', '?')})")
    form = "  {:10} {:19} {:9} {:>7} {:>7} {:8} {:13} {}"
    print(form.format("case", "rung", "zero-copy", "replies", "sockets", "balanced", "VLAN offload", "what happens"))
    for case, rung, phases, story in CASES:
        wrong, numbers = judge(case, rung, phases, seen)
        print(form.format(case, numbers["rung"], numbers["zero"], numbers["replies"], numbers["sockets"],
                          numbers["balanced"], numbers["offload"], story))
        for one in wrong:
            print(f"    FAILED {one}")
        failed |= bool(wrong)
    others = {
        "best.alive-while-down": "yes", "copy.alive-while-down": "yes", "skb.alive-while-down": "yes",
        "best.carrier-while-out": "0", "unplugged.alive-while-gone": "yes", "tagged.vlan": "yes", "forecast": ZERO_COPY,
        "kernel-complained": "no", "end": "",
    }
    for name, wanted in others.items():
        if seen.get(name) != wanted:
            print(f"    FAILED {name} is {seen.get(name, 'nothing')}, not {wanted or 'reached'}")
            failed = True
    sys.exit(failed)


main()
