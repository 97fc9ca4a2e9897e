#!/usr/bin/env python3
"""Sends NTP requests of every kind to a server, good and bad ones, and prints which were answered.

    sudo scripts/lab exec client scripts/packet-probe.py --interface tb0 --server 10.99.1.1
    scripts/packet-probe.py --udp --server ::1

With --interface whole Ethernet frames leave through a packet socket, so that fragments, options, tags and forged
addresses can be tried: only for a lab. With --udp an ordinary socket sends the cases that differ in their payload alone.
All requests leave at once, each from a port of its own; then one wait collects the replies. A case is fine when it was
answered or not as expected (a case with no expectation is only shown) and the reply is a right one. The same --seed
gives the same request bytes. Exit code 1 if a case is not fine.
"""

import argparse
import ipaddress
import json
import random
import select
import socket
import struct
import subprocess
import sys
import time

REPLY, SILENCE, EITHER = "reply", "silence", None
NTP_PORT = 123
FIRST_PORT = 40000
SOL_PACKET, PACKET_AUXDATA = 263, 8
TP_STATUS_CSUMNOTREADY, TP_STATUS_VLAN_VALID = 1 << 3, 1 << 4
ETH_IPV4, ETH_IPV6, ETH_VLAN, ETH_QINQ = 0x0800, 0x86DD, 0x8100, 0x88A8


def checksum(data):
    """The internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(addresses, length):
    """What the checksum of a UDP datagram of `length` octets covers besides it (RFC 768, RFC 8200 section 8.1)."""
    return addresses + (struct.pack("!II", length, 17) if len(addresses) == 32 else struct.pack("!HH", 17, length))


def extension(kind, length, declared=None):
    """An extension field of `length` octets that claims to be `declared` octets long."""
    return struct.pack("!HH", kind, length if declared is None else declared) + b"\xa5" * (length - 4)


class Case:
    """One request: `payload` makes the UDP payload from a header maker, `link` changes what carries it."""

    def __init__(self, name, expect, payload=None, **link):
        self.name, self.expect, self.link = name, expect, link
        self.payload = payload or (lambda header: header())


def payload_cases():
    """Cases that any socket can send."""
    for version in range(8):
        expect = REPLY if 1 <= version <= 4 else SILENCE
        yield Case(f"version-{version}", expect, lambda header, v=version: header(version=v))
    for mode in (0, 1, 2, 4, 5, 6, 7):
        yield Case(f"mode-{mode}", SILENCE, lambda header, m=mode: header(mode=m))
    # RFC 1059 had no modes, so some servers take this for a request.
    yield Case("version-1-mode-0", EITHER, lambda header: header(version=1, mode=0))
    for leap in (1, 2, 3):
        yield Case(f"leap-{leap}", REPLY, lambda header, li=leap: header(leap=li))
    for poll in (-128, -6, 17, 127):
        yield Case(f"poll-{poll}", REPLY, lambda header, p=poll: header(poll=p))
    yield Case("zero-transmit", REPLY, lambda header: header()[:40] + bytes(8))
    for length in (0, 1, 4, 12, 47):
        yield Case(f"length-{length}", SILENCE, lambda header, n=length: header()[:n])
    for extra in (1, 2, 3):
        yield Case(f"length-{48 + extra}", SILENCE, lambda header, n=extra: header() + bytes(n))
    for version in (3, 4):
        for trailer in (4, 8, 12, 16, 20, 24, 36, 52, 68):
            yield Case(f"version-{version}-trailer-{trailer}", EITHER,
                       lambda header, v=version, n=trailer: header(version=v) + struct.pack("!I", 7) + bytes(n - 4))
    good = {
        "extension-28": extension(0x2222, 28),
        "extension-16-then-28": extension(0x2222, 16) + extension(0x3333, 28),
        "extension-1024": extension(0x2222, 1024),
        "extensions-four": extension(0x2222, 32) * 4,
        "extension-unique-identifier": extension(0x0104, 36),
    }
    for name, fields in good.items():
        yield Case(name, REPLY, lambda header, f=fields: header() + f)
    bad = {
        "extension-length-0": extension(0x2222, 28, 0),
        "extension-length-4": extension(0x2222, 28, 4),
        "extension-length-12": extension(0x2222, 28, 12),
        "extension-length-odd": extension(0x2222, 28, 27),
        "extension-length-too-long": extension(0x2222, 28, 32),
        "extension-length-65532": extension(0x2222, 28, 65532),
        "extension-good-then-bad": extension(0x2222, 28) + extension(0x2222, 28, 0),
    }
    for name, fields in bad.items():
        yield Case(name, SILENCE, lambda header, f=fields: header() + f)


def link_cases(ipv6):
    """Cases that only a packet socket can send."""
    yield Case("source-port-123", REPLY, source_port=NTP_PORT)
    yield Case("destination-port-124", SILENCE, destination_port=124)
    yield Case("ttl-1", REPLY, ttl=1)
    yield Case("ethernet-padding", REPLY, padding=bytes(6))
    yield Case("udp-length-short", SILENCE, udp_length=8 + 47)
    yield Case("udp-length-long", SILENCE, udp_length=8 + 52)
    # RFC 2675 gives the length 0 a meaning in IPv6.
    yield Case("udp-length-0", EITHER if ipv6 else SILENCE, udp_length=0)
    yield Case("udp-checksum-wrong", EITHER, udp_checksum=0xBAD0)
    yield Case("udp-checksum-0", SILENCE if ipv6 else REPLY, udp_checksum=0)
    yield Case("truncated", SILENCE, truncate=20)
    yield Case("vlan-unknown", SILENCE, vlans=[999])
    yield Case("vlan-unknown-qinq", SILENCE, vlans=[999, 998])
    if ipv6:
        yield Case("hop-by-hop-header", REPLY, extension_header=0)
        yield Case("destination-options-header", REPLY, extension_header=60)
        yield Case("first-fragment-only", SILENCE, fragment="first")
        yield Case("whole-in-fragment-header", REPLY, fragment="atomic")
        yield Case("destination-multicast", SILENCE, destination="ff02::101")
        for name, source in (("multicast", "ff02::1"), ("loopback", "::1"), ("unspecified", "::")):
            yield Case(f"source-{name}", SILENCE, source=source)
    else:
        yield Case("ip-options", REPLY, options=b"\x01\x01\x01\x00")
        yield Case("first-fragment-only", SILENCE, fragment="first")
        yield Case("in-two-fragments", REPLY, fragment="two")
        yield Case("ip-version-5", SILENCE, ip_version=5)
        yield Case("ip-header-length-16", SILENCE, header_words=4)
        yield Case("ip-total-length-long", SILENCE, total_length_extra=8)
        yield Case("destination-broadcast", SILENCE, destination="255.255.255.255")
        yield Case("destination-multicast", SILENCE, destination="224.0.1.1")
        for name, source in (("multicast", "224.0.0.1"), ("broadcast", "255.255.255.255"), ("loopback", "127.0.0.1"),
                             ("unspecified", "0.0.0.0")):
            yield Case(f"source-{name}", SILENCE, source=source)
    yield Case("destination-not-ours", SILENCE, destination="fd99:1::77" if ipv6 else "10.99.1.77")
    yield Case("source-is-the-server", SILENCE, source="server")


def make_header(seed, name):
    """Returns a function that makes a request header whose unpredictable fields depend on seed and case name alone."""
    draw = random.Random(f"{seed} {name}")

    def header(version=4, mode=3, leap=0, poll=6):
        first = leap << 6 | version << 3 | mode
        return struct.pack("!BBbb", first, 0, poll, 32) + bytes(36) + draw.randbytes(8)

    return header


def faults_of(request, reply):
    """What is wrong with the payload of a reply, as a list of sentences."""
    if len(reply) < 48:
        return [f"is {len(reply)} octets long"]
    faults = []
    if len(reply) > len(request):
        faults.append(f"{len(reply)} octets answer {len(request)}")
    if reply[0] & 7 != 4:
        faults.append(f"mode is {reply[0] & 7}, not 4")
    if reply[0] & 0x38 != request[0] & 0x38:
        faults.append("version is not the request's")
    if reply[2] != request[2]:
        faults.append("poll is not the request's")
    if reply[24:32] != request[40:48]:
        faults.append("origin timestamp is not the request's transmit timestamp")
    receive, transmit = struct.unpack("!QQ", reply[32:48])
    now = time.time() + 2208988800
    if receive == 0 or transmit == 0 or receive == transmit:
        faults.append("receive and transmit timestamps are zero or equal")
    elif not 0 < transmit - receive < 1 << 32:
        faults.append("transmit timestamp is not within a second after the receive timestamp")
    elif abs(transmit / 2**32 - now % 2**32) > 5:
        faults.append("transmit timestamp is not this machine's time")
    return faults


class PacketSocket:
    """Sends cases as Ethernet frames and sorts the replies by the port they go to."""

    def __init__(self, interface, server, vlans, mac):
        self.server, self.vlans = server, vlans
        self.ipv6 = ipaddress.ip_address(server).version == 6
        family = socket.AF_INET6 if self.ipv6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((server, 9))
            self.source = probe.getsockname()[0]
            probe.send(b"")  # makes the kernel look up the neighbour
        self.mac = mac or self.neighbour(interface)
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind((interface, 3))
        self.own_mac = self.socket.getsockname()[4]

    def neighbour(self, interface):
        for _ in range(20):
            shown = subprocess.run(["ip", "-j", "neigh", "show", "to", self.server, "dev", interface],
                                   capture_output=True, text=True, check=True).stdout
            for entry in json.loads(shown or "[]"):
                if "lladdr" in entry:
                    return bytes.fromhex(entry["lladdr"].replace(":", ""))
            time.sleep(0.05)
        sys.exit(f"packet-probe: {self.server} has no link address on {interface}: give --mac")

    def send(self, case, payload, port):
        for frame in self.frames(case.link, payload, port):
            self.socket.send(frame)

    def frames(self, link, payload, port):
        source = link.get("source", self.source)
        source = self.server if source == "server" else source
        source = ipaddress.ip_address(source).packed
        destination = ipaddress.ip_address(link.get("destination", self.server)).packed
        udp = struct.pack("!HHH", link.get("source_port", port), link.get("destination_port", NTP_PORT),
                          link.get("udp_length", 8 + len(payload)))
        pseudo = pseudo_header(source + destination, 8 + len(payload))
        right = checksum(pseudo + udp + b"\0\0" + payload) or 0xFFFF
        udp += struct.pack("!H", link.get("udp_checksum", right)) + payload
        packets = self.ipv6_packets(link, source, destination, udp) if self.ipv6 else \
            self.ipv4_packets(link, source, destination, udp)
        ethertype = ETH_IPV6 if self.ipv6 else ETH_IPV4
        tags = tag_bytes(link.get("vlans", self.vlans))
        for packet in packets:
            packet = packet[:len(packet) - link.get("truncate", 0)] + link.get("padding", b"")
            yield self.mac + self.own_mac + tags + struct.pack("!H", ethertype) + packet

    @staticmethod
    def ipv4_packets(link, source, destination, udp):
        pieces = [(0, udp)]  # flags and offset, data
        identification = {None: 1, "first": 2, "two": 3}[link.get("fragment")]
        if link.get("fragment") == "first":
            pieces = [(0x2000, udp)]
        elif link.get("fragment") == "two":
            pieces = [(0x2000, udp[:32]), (32 // 8, udp[32:])]
        options = link.get("options", b"")
        for flags, data in pieces:
            header = struct.pack("!BBHHHBBH", link.get("ip_version", 4) << 4 | link.get("header_words", 5 + len(options) // 4),
                                 0, 20 + len(options) + len(data) + link.get("total_length_extra", 0), identification, flags,
                                 link.get("ttl", 64), 17, 0) + source + destination + options
            yield header[:10] + struct.pack("!H", checksum(header)) + header[12:] + data

    @staticmethod
    def ipv6_packets(link, source, destination, udp):
        next_header, data = 17, udp
        if "fragment" in link:
            more = 1 if link["fragment"] == "first" else 0
            next_header, data = 44, struct.pack("!BBHI", 17, 0, more, 0x1234) + udp
        elif "extension_header" in link:
            next_header, data = link["extension_header"], struct.pack("!BBBB", 17, 0, 1, 4) + bytes(4) + udp
        yield struct.pack("!IHBB", 6 << 28, len(data), next_header, link.get("ttl", 64)) + source + destination + data

    def replies(self, deadline):
        """Yields (port, payload, tags, faults of the carriers) until the deadline."""
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self.socket], [], [], left)[0]:
                return
            frame, ancillary, _, address = self.socket.recvmsg(65536, 256)
            if address[2] == socket.PACKET_OUTGOING:
                continue
            status = tci = 0
            for _, _, data in ancillary:
                status, _, _, _, _, tci, _ = struct.unpack("=IIIHHHH", data[:20])
            tags = [tci & 0xFFF] if status & TP_STATUS_VLAN_VALID else []
            reply = parse(frame, tags, status & TP_STATUS_CSUMNOTREADY == 0)
            if reply:
                port, source, destination, payload, faults = reply
                if ipaddress.ip_address(source) != ipaddress.ip_address(self.server):
                    faults.append(f"comes from {source}")
                if ipaddress.ip_address(destination) != ipaddress.ip_address(self.source):
                    faults.append(f"goes to {destination}")
                if frame[:6] != self.own_mac:
                    faults.append("goes to another link address")
                if tags != self.vlans:
                    faults.append(f"carries VLAN tags {tags}, not {self.vlans}")
                yield port, payload, tags, faults


def tag_bytes(vlans):
    kinds = [ETH_VLAN] if len(vlans) < 2 else [ETH_QINQ, ETH_VLAN]
    return b"".join(struct.pack("!HH", kind, vlan) for kind, vlan in zip(kinds, vlans))


def parse(frame, tags, checksum_ready):
    """Returns (destination port, source, destination, payload, faults) of a datagram from port 123, else None."""
    at = 12
    ethertype, = struct.unpack_from("!H", frame, at)
    while ethertype in (ETH_VLAN, ETH_QINQ):
        tags.append(struct.unpack_from("!H", frame, at + 2)[0] & 0xFFF)
        at += 4
        ethertype, = struct.unpack_from("!H", frame, at)
    packet, faults = frame[at + 2:], []
    if ethertype == ETH_IPV4 and packet[9] == 17:
        size = (packet[0] & 15) * 4
        addresses, total = packet[12:20], struct.unpack_from("!H", packet, 2)[0]
        if checksum(packet[:size]) != 0:
            faults.append("IPv4 header checksum is wrong")
        udp = packet[size:total]
    elif ethertype == ETH_IPV6 and packet[6] == 17:
        addresses, size = packet[8:40], struct.unpack_from("!H", packet, 4)[0]
        udp = packet[40:40 + size]
    else:
        return None
    source_port, port, length, received = struct.unpack_from("!HHHH", udp)
    if source_port != NTP_PORT:
        return None
    if length != len(udp):
        faults.append("UDP length is not the IP payload's")
    # The kernel leaves the checksum of a local datagram to a NIC that veth does not have, and says so.
    if checksum_ready and (received == 0 or checksum(pseudo_header(addresses, len(udp)) + udp) != 0):
        faults.append("UDP checksum is wrong or missing")
    half = len(addresses) // 2
    return (port, ipaddress.ip_address(addresses[:half]), ipaddress.ip_address(addresses[half:]), udp[8:], faults)


class UdpSockets:
    """Sends cases from ordinary sockets, one each."""

    def __init__(self, server, server_port):
        self.server = (server, server_port)
        self.family = socket.AF_INET6 if ipaddress.ip_address(server).version == 6 else socket.AF_INET
        self.sockets = {}

    def send(self, case, payload, port):
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        try:
            sock.connect(self.server)
            sock.send(payload)
        except OSError as error:
            print(f"packet-probe: {case.name}: {error}", file=sys.stderr)
        self.sockets[sock] = port

    def replies(self, deadline):
        while (left := deadline - time.monotonic()) > 0:
            for sock in select.select(list(self.sockets), [], [], left)[0]:
                try:
                    yield self.sockets[sock], sock.recv(65536), [], []
                except OSError as error:  # what an ICMP message told the kernel
                    print(f"packet-probe: {error}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", required=True, help="IPv4 or IPv6 address")
    parser.add_argument("--interface", help="send Ethernet frames through this interface")
    parser.add_argument("--udp", action="store_true", help="send from ordinary sockets")
    parser.add_argument("--port", type=int, default=NTP_PORT, help="server's port, with --udp")
    parser.add_argument("--vlan", default="", help="tag the frames: VID, or OUTER.INNER")
    parser.add_argument("--mac", help="the server's link address, if the kernel does not know it")
    parser.add_argument("--case", action="append", help="only this case (repeatable)")
    parser.add_argument("--payload", help="send this payload (hex) instead of the cases")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--seed", default="1", help="same seed, same requests")
    parser.add_argument("--wait", type=float, default=0.5, help="seconds to wait for replies")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.udp == bool(options.interface) and not options.list:
        parser.error("give either --interface or --udp")

    cases = list(payload_cases())
    if not options.udp:
        cases += link_cases(ipaddress.ip_address(options.server).version == 6)
    if options.payload is not None:
        cases = [Case("payload", EITHER, lambda header: bytes.fromhex(options.payload))]
    if options.case:
        unknown = set(options.case) - {case.name for case in cases}
        if unknown:
            parser.error(f"no such case: {', '.join(sorted(unknown))}; --list shows them")
        cases = [case for case in cases if case.name in options.case]
    if options.list:
        for case in cases:
            print(f"{case.name:32} {case.expect or 'either'}")
        return 0

    if options.udp:
        carrier = UdpSockets(options.server, options.port)
    else:
        vlans = [int(vlan) for vlan in options.vlan.split(".") if vlan]
        mac = bytes.fromhex(options.mac.replace(":", "")) if options.mac else None
        carrier = PacketSocket(options.interface, options.server, vlans, mac)
    results = {}
    for number, case in enumerate(cases):
        payload = case.payload(make_header(options.seed, case.name))
        port = case.link.get("source_port", FIRST_PORT + number)
        carrier.send(case, payload, port)
        results[port] = {"case": case.name, "expect": case.expect, "request": payload.hex(), "reply": None, "faults": []}
    for port, payload, tags, faults in carrier.replies(time.monotonic() + options.wait):
        result = results.get(port)
        if result is None:
            continue
        if result["reply"] is not None:
            faults.append("answered twice")
        result["reply"], result["tags"] = payload.hex(), tags
        result["faults"] += faults + faults_of(bytes.fromhex(result["request"]), payload)
        if all(result["reply"] for result in results.values()):
            break
    for result in results.values():
        answered = REPLY if result["reply"] is not None else SILENCE
        result["ok"] = not result["faults"] and result["expect"] in (EITHER, answered)
    report(list(results.values()), options.json)
    return 0 if all(result["ok"] for result in results.values()) else 1


def report(results, as_json):
    if as_json:
        print(json.dumps(results, indent=1))
        return
    for result in results:
        answered = REPLY if result["reply"] is not None else SILENCE
        verdict = "ok" if result["ok"] else "NOT EXPECTED" if not result["faults"] else "WRONG: " + "; ".join(result["faults"])
        print(f"{result['case']:32} {answered:8} {verdict}")


if __name__ == "__main__":
    sys.exit(main())
