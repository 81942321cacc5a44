"""An independent reader of RoCEv2 packets, for checking captures.

It shares nothing with the Rust crates, on purpose: opcodes, header layouts and the ICRC are written down a
second time here, so that a mistake has to be made twice to pass.
"""

import ipaddress
import struct
import zlib
from dataclasses import dataclass, field

UDP_PORT = 4791
PSN_MASK = 0xFFFFFF

OPCODES = {
    0x00: "SEND_FIRST",
    0x01: "SEND_MIDDLE",
    0x02: "SEND_LAST",
    0x03: "SEND_LAST_IMM",
    0x04: "SEND_ONLY",
    0x05: "SEND_ONLY_IMM",
    0x06: "WRITE_FIRST",
    0x07: "WRITE_MIDDLE",
    0x08: "WRITE_LAST",
    0x09: "WRITE_LAST_IMM",
    0x0A: "WRITE_ONLY",
    0x0B: "WRITE_ONLY_IMM",
    0x0C: "READ_REQUEST",
    0x0D: "READ_RESPONSE_FIRST",
    0x0E: "READ_RESPONSE_MIDDLE",
    0x0F: "READ_RESPONSE_LAST",
    0x10: "READ_RESPONSE_ONLY",
    0x11: "ACKNOWLEDGE",
    0x12: "ATOMIC_ACKNOWLEDGE",
    0x13: "COMPARE_SWAP",
    0x14: "FETCH_ADD",
    0x16: "SEND_LAST_INVALIDATE",
    0x17: "SEND_ONLY_INVALIDATE",
    0x1C: "FLUSH",
    0x1D: "ATOMIC_WRITE",
    # One of those that manufacturers may use: what a responder misses. It is there when packets were lost.
    0xC1: "MISSING",
}

# Extension headers in the order in which they follow the BTH.
EXTENSIONS = {
    "WRITE_FIRST": ["reth"],
    "WRITE_ONLY": ["reth"],
    "WRITE_ONLY_IMM": ["reth", "imm"],
    "WRITE_LAST_IMM": ["imm"],
    "SEND_LAST_IMM": ["imm"],
    "SEND_ONLY_IMM": ["imm"],
    "SEND_LAST_INVALIDATE": ["imm"],
    "SEND_ONLY_INVALIDATE": ["imm"],
    "READ_REQUEST": ["reth"],
    "READ_RESPONSE_FIRST": ["aeth"],
    "READ_RESPONSE_LAST": ["aeth"],
    "READ_RESPONSE_ONLY": ["aeth"],
    "ACKNOWLEDGE": ["aeth"],
    "ATOMIC_ACKNOWLEDGE": ["aeth", "atomic_ack"],
    "COMPARE_SWAP": ["atomic"],
    "FETCH_ADD": ["atomic"],
    "FLUSH": ["feth", "reth"],
    "ATOMIC_WRITE": ["reth"],
    "MISSING": ["missing"],
}

RESPONSES = {name for name in OPCODES.values() if "RESPONSE" in name or "ACKNOWLEDGE" in name or name == "MISSING"}
STARTS = ("_FIRST", "_ONLY", "_ONLY_IMM", "_ONLY_INVALIDATE")
ENDS = ("_LAST", "_LAST_IMM", "_LAST_INVALIDATE", "_ONLY", "_ONLY_IMM", "_ONLY_INVALIDATE")


class Wrong(Exception):
    """A packet, or a sequence of them, that breaks a rule."""


@dataclass
class Packet:
    """One packet: its fields, and the wire's bytes that the ICRC covers."""

    number: int
    source: str
    destination: str
    source_port: int
    opcode: int
    name: str
    solicited: bool
    pad: int
    version: int
    pkey: int
    dest_qpn: int
    ack_request: bool
    psn: int
    payload: bytes
    padding: bytes
    icrc: bytes
    computed_icrc: bytes
    fields: dict = field(default_factory=dict)

    def is_response(self):
        return self.name in RESPONSES


def icrc(ip, udp, datagram):
    """The ICRC over an IP header, a UDP header and a datagram without its ICRC, as bytes on the wire."""
    if ip[0] >> 4 == 4:
        ip = bytearray(ip)
        ip[1] = ip[8] = ip[10] = ip[11] = 0xFF
    else:
        ip = bytearray(ip)
        ip[0] |= 0x0F
        ip[1] = ip[2] = ip[3] = ip[7] = 0xFF
    udp = udp[:6] + b"\xff\xff"
    datagram = datagram[:4] + b"\xff" + datagram[5:]
    return struct.pack("<I", zlib.crc32(b"\xff" * 8 + bytes(ip) + udp + datagram))


def internet_checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def split_ip(data):
    """IP header, protocol, source and destination of a packet that begins with its IP header."""
    version = data[0] >> 4
    if version == 4:
        length = (data[0] & 15) * 4
        if struct.unpack(">H", data[2:4])[0] != len(data):
            raise Wrong(f"IPv4 total length {struct.unpack('>H', data[2:4])[0]} of {len(data)} bytes")
        if internet_checksum(data[:length]) != 0:
            raise Wrong("IPv4 header checksum")
        return data[:length], data[9], ipaddress.ip_address(data[12:16]), ipaddress.ip_address(data[16:20])
    if version == 6:
        if struct.unpack(">H", data[4:6])[0] != len(data) - 40:
            raise Wrong(f"IPv6 payload length {struct.unpack('>H', data[4:6])[0]} of {len(data) - 40} bytes")
        return data[:40], data[6], ipaddress.ip_address(data[8:24]), ipaddress.ip_address(data[24:40])
    raise Wrong(f"IP version {version}")


def parse(number, data):
    """Reads one packet that begins with its IP header."""
    ip, protocol, source, destination = split_ip(data)
    if protocol != 17:
        raise Wrong(f"IP protocol {protocol}, not UDP")
    udp, datagram = data[len(ip) : len(ip) + 8], data[len(ip) + 8 :]
    source_port, port, length, _ = struct.unpack(">4H", udp)
    if port != UDP_PORT:
        raise Wrong(f"UDP port {port}")
    if length != 8 + len(datagram):
        raise Wrong(f"UDP length {length} of {8 + len(datagram)} bytes")
    if len(datagram) < 16 or len(datagram) % 4:
        raise Wrong(f"{len(datagram)} bytes of datagram")
    opcode, flags, pkey, qpn, psn = struct.unpack(">BBHII", datagram[:12])
    name = OPCODES.get(opcode)
    if name is None:
        raise Wrong(f"opcode {opcode:#04x}")
    pad = flags >> 4 & 3
    at, fields = 12, {}
    for extension in EXTENSIONS.get(name, []):
        at = extend(extension, datagram, at, fields)
    end = len(datagram) - 4 - pad
    if end < at:
        raise Wrong(f"{name}: headers and pad run into the ICRC")
    return Packet(
        number=number,
        source=str(source),
        destination=str(destination),
        source_port=source_port,
        opcode=opcode,
        name=name,
        solicited=bool(flags & 0x80),
        pad=pad,
        version=flags & 15,
        pkey=pkey,
        dest_qpn=qpn & 0xFFFFFF,
        ack_request=bool(psn >> 31),
        psn=psn & PSN_MASK,
        payload=datagram[at:end],
        padding=datagram[end:-4],
        icrc=datagram[-4:],
        computed_icrc=icrc(ip, udp, datagram[:-4]),
        fields=fields,
    )


def extend(extension, datagram, at, fields):
    """Reads one extension header into `fields` and returns the offset behind it."""
    layouts = {
        "reth": (">QII", ("va", "rkey", "dmalen")),
        "imm": (">I", ("imm",)),
        "aeth": (">I", ("aeth",)),
        "atomic": (">QIQQ", ("va", "rkey", "swap_add", "compare")),
        "atomic_ack": (">Q", ("original",)),
        "feth": (">I", ("feth",)),
        "missing": (">HHQQQ", ("seen", "reserved", "gaps", "more_gaps", "last_gaps")),
    }
    layout, names = layouts[extension]
    size = struct.calcsize(layout)
    if at + size > len(datagram) - 4:
        raise Wrong(f"{extension} runs into the ICRC")
    fields.update(zip(names, struct.unpack(layout, datagram[at : at + size])))
    if extension == "aeth":
        value = fields.pop("aeth")
        fields.update(syndrome=value >> 24, msn=value & 0xFFFFFF)
    return at + size


def check_packet(packet):
    """The rules that one packet shows by itself."""
    if packet.icrc != packet.computed_icrc:
        raise Wrong(f"ICRC {packet.icrc.hex()}, computed {packet.computed_icrc.hex()}")
    if packet.version:
        raise Wrong(f"TVer {packet.version}")
    if any(packet.padding):
        raise Wrong(f"pad bytes {packet.padding.hex()} are not zero")
    if packet.pad != -len(packet.payload) & 3:
        raise Wrong(f"pad {packet.pad} behind {len(packet.payload)} bytes")
    if packet.name.endswith(("_FIRST", "_MIDDLE")) and len(packet.payload) not in (256, 512, 1024, 2048, 4096):
        raise Wrong(f"{packet.name} of {len(packet.payload)} bytes is not one path MTU")
    if packet.name.endswith("_LAST") and not packet.payload:
        raise Wrong(f"{packet.name} is empty")
    bare = packet.name in ("READ_REQUEST", "ACKNOWLEDGE", "ATOMIC_ACKNOWLEDGE", "COMPARE_SWAP", "FETCH_ADD")
    if bare and packet.payload:
        raise Wrong(f"{packet.name} with {len(packet.payload)} bytes of payload")
    syndrome = packet.fields.get("syndrome")
    if syndrome is not None and syndrome >> 5 not in (0, 1) and syndrome not in (0x60, 0x61, 0x62, 0x63, 0x64):
        raise Wrong(f"AETH syndrome {syndrome:#04x}")
    if "swap_add" in packet.fields and packet.fields["va"] % 8:
        raise Wrong(f"atomic at {packet.fields['va']:#x}, not a multiple of 8")


def psn_distance(a, b):
    """a - b in 24 bits, as a signed number."""
    return ((a - b + 0x800000) & PSN_MASK) - 0x800000


class Requests:
    """The requests to one queue pair, each PSN once, in order."""

    def __init__(self, mtu):
        self.mtu = mtu
        self.packets = []  # (unwrapped PSN, packet)
        self.first = None  # the first PSN
        self.next = 0  # unwrapped PSN that comes next
        self.again = 0  # packets that were sent more than once
        self.completed = []  # unwrapped PSN of the last packet of each message; a READ's is its first

    def add(self, packet):
        if self.first is None:
            self.first = packet.psn
        offset = self.next + psn_distance(packet.psn, (self.first + self.next) & PSN_MASK)
        if offset > self.next:
            raise Wrong(f"PSN {packet.psn} leaves out {offset - self.next} before it")
        if offset < self.next:
            self.again += 1
            return
        self.packets.append((offset, packet))
        used = 1
        if packet.name == "READ_REQUEST":
            used = max(1, -(-packet.fields["dmalen"] // self.mtu))
        self.next += used
        if packet.name in ("READ_REQUEST", "COMPARE_SWAP", "FETCH_ADD") or packet.name.endswith(ENDS):
            self.completed.append(offset)

    def messages(self):
        """Each message as a list of packets, with First, Middle and Last in their places."""
        message = []
        for _, packet in self.packets:
            operation = packet.name.split("_")[0]
            single = packet.name in ("READ_REQUEST", "COMPARE_SWAP", "FETCH_ADD")
            if single or packet.name.endswith(STARTS):
                if message:
                    raise Wrong(f"{packet.name} (packet {packet.number}) inside a message")
            elif not message or not message[0].name.startswith(operation):
                raise Wrong(f"{packet.name} (packet {packet.number}) without its First")
            message.append(packet)
            if single or packet.name.endswith(ENDS):
                yield message
                message = []

    def covers(self, psn):
        return self.first is not None and 0 <= psn_distance(psn, self.first) < self.next


def check_message(message, sizes):
    """The rules of one request message; `sizes` are the lengths that the program sent, if known."""
    first = message[0]
    length = sum(len(packet.payload) for packet in message)
    expected = first.fields.get("dmalen") if first.name.startswith("WRITE") else None
    if expected is not None and length != expected:
        raise Wrong(f"packet {first.number}: RETH says {expected} bytes, {length} follow")
    mtus = {len(packet.payload) for packet in message[:-1]}
    if len(mtus) > 1:
        raise Wrong(f"packet {first.number}: First and Middle of {sorted(mtus)} bytes")
    if mtus and len(message[-1].payload) > max(mtus):
        raise Wrong(f"packet {message[-1].number}: Last is longer than the path MTU")
    length = first.fields.get("dmalen", length)
    if sizes and first.name.split("_")[0] in ("SEND", "WRITE", "READ") and length not in sizes:
        raise Wrong(f"packet {first.number}: a {first.name} message of {length} bytes, sent were {sorted(sizes)}")


def check_responses(requests, responses):
    """The rules between the requests to one queue pair and the responses to them, in capture order."""
    reads, payload = {}, {}
    for offset, packet in requests.packets:
        if packet.name == "READ_REQUEST":
            count = max(1, -(-packet.fields["dmalen"] // requests.mtu))
            for nth in range(count):
                reads[offset + nth] = (nth, count)
    for response in responses:
        offset = psn_distance(response.psn, requests.first)
        if response.name.startswith("READ_RESPONSE"):
            if offset not in reads:
                raise Wrong(f"packet {response.number}: {response.name} to no READ")
            nth, count = reads[offset]
            payload.setdefault(offset - nth, {})[nth] = len(response.payload)
            if response.name.endswith(("_LAST", "_ONLY")) != (nth == count - 1):
                raise Wrong(f"packet {response.number}: {response.name} is {nth + 1} of {count}")
        msn = response.fields.get("msn")
        if msn is not None and response.fields["syndrome"] >> 5 == 0:
            check_msn(requests, response, offset, msn)
    for offset, packet in requests.packets:
        parts = payload.get(offset, {})
        if packet.name == "READ_REQUEST" and len(parts) == reads[offset][1]:
            if sum(parts.values()) != packet.fields["dmalen"]:
                raise Wrong(f"packet {packet.number}: READ of {packet.fields['dmalen']} got {sum(parts.values())}")


def check_msn(requests, response, offset, msn):
    """An acknowledgement counts the messages completed up to its PSN; later ones may be counted in responses
    that take their time (READ and atomic), and in duplicates."""
    least = sum(1 for end in requests.completed if end <= offset)
    most = len(requests.completed)
    if response.name == "ACKNOWLEDGE":
        most = least
    if not least <= msn <= most:
        raise Wrong(f"packet {response.number}: {response.name} has MSN {msn}, not {least}..{most}")


def check_capture(packets, sizes=()):
    """Every rule over a whole capture of one side, in order. Returns what was seen, for the report."""
    for packet in packets:
        try:
            check_packet(packet)
        except Wrong as wrong:
            raise Wrong(f"packet {packet.number}: {wrong}") from None
    firsts = {len(packet.payload) for packet in packets if packet.name.endswith("_FIRST")}
    if len(firsts) > 1:
        raise Wrong(f"First packets of {sorted(firsts)} bytes in one capture")
    mtu = firsts.pop() if firsts else 4096
    flows = {}
    for packet in packets:
        if not packet.is_response():
            try:
                flows.setdefault(packet.dest_qpn, Requests(mtu)).add(packet)
            except Wrong as wrong:
                raise Wrong(f"packet {packet.number} to QP {packet.dest_qpn:#x}: {wrong}") from None
    for requests in flows.values():
        for message in requests.messages():
            check_message(message, set(sizes))
    answered = match_responses(packets, flows)
    for qpn, responses in answered.items():
        check_responses(flows[qpn], responses)
    return {
        "packets": len(packets),
        "flows": len(flows),
        "mtu": mtu,
        "again": sum(requests.again for requests in flows.values()),
        "names": {packet.name for packet in packets},
    }


def match_responses(packets, flows):
    """Responses by the queue pair whose requests they answer.

    A response names the requester's queue pair, not the responder's, so the two are matched by PSN: start
    PSNs are random, and one pair of queue pairs keeps its partner.
    """
    by_requester = {}
    for packet in packets:
        if packet.is_response():
            by_requester.setdefault(packet.dest_qpn, []).append(packet)
    answered = {}
    for requester, responses in by_requester.items():
        partners = [
            qpn
            for qpn, requests in flows.items()
            if qpn != requester and all(requests.covers(response.psn) for response in responses)
        ]
        if not partners:
            raise Wrong(f"packet {responses[0].number}: answers to QP {requester:#x} fit no requests")
        answered[partners[0]] = responses
    return answered
