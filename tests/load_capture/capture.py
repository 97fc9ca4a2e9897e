#!/usr/bin/env python3
"""Watches NTP packets pass on one interface, IPv4 and untagged, until its input is closed; then prints as JSON, for each
request that was answered, [time from request to reply, T3 - T2], the first in nanoseconds by the kernel's stamps and
the second in units of 2^-32 s. It shares no code with timeball."""
import json
import select
import socket
import struct
import sys

SO_TIMESTAMPNS = 35
ETH_P_ALL = 3

tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
tap.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
tap.bind((sys.argv[1], ETH_P_ALL))
print("ready", flush=True)

asked, answered, again = {}, {}, 0
while True:
    readable, _, _ = select.select([tap, sys.stdin], [], [])
    if tap not in readable:
        break
    frame, ancillary, _, _ = tap.recvmsg(2048, 256)
    if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_UDP or len(frame) < 90:
        continue
    stamp = next(struct.unpack("qq", data) for _, kind, data in ancillary if kind == SO_TIMESTAMPNS)
    time = stamp[0] * 1_000_000_000 + stamp[1]
    ntp = frame[42:90]
    if ntp[0] & 7 == 3:
        asked[ntp[40:48]] = time
    elif ntp[0] & 7 == 4 and ntp[24:32] in asked:
        receive, transmit = struct.unpack(">QQ", ntp[32:48])
        again += ntp[24:32] in answered
        answered[ntp[24:32]] = [time - asked[ntp[24:32]], transmit - receive]
print(json.dumps({"asked": len(asked), "again": again, "answered": list(answered.values())}))
