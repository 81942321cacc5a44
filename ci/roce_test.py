"""Tests of ci/roce.py and ci/tshark-check: known ICRCs, a right capture, and wrong ones that are caught."""

import contextlib
import importlib.machinery
import importlib.util
import pathlib
import shutil
import struct
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))
import roce

CODES = {name: code for code, name in roce.OPCODES.items()}
MTU = 1024
REQUESTER, RESPONDER = 0x000123, 0xABCDEF
START = 0xFFFFFE  # so that the PSN wraps


def load_tshark_check():
    loader = importlib.machinery.SourceFileLoader("tshark_check", str(HERE / "tshark-check"))
    spec = importlib.util.spec_from_loader("tshark_check", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def encode(name, qpn, psn, extension=b"", payload=b"", ack=False, pad=None, pad_byte=b"\0", version=6):
    """An IP packet, headers and ICRC included."""
    pad = -len(payload) & 3 if pad is None else pad
    bth = struct.pack(">BBHII", CODES[name], pad << 4, 0xFFFF, qpn, (ack << 31) | (psn & roce.PSN_MASK))
    datagram = bth + extension + payload + pad_byte * pad
    udp = struct.pack(">4H", 0xC123, roce.UDP_PORT, 8 + len(datagram) + 4, 0)
    address = bytes.fromhex("fd00000000000000000000000000000" + "1")
    if version == 6:
        ip = struct.pack(">IHBB", 0x60000000, len(udp) + len(datagram) + 4, 17, 64) + address * 2
    else:
        total = 20 + len(udp) + len(datagram) + 4
        ip = struct.pack(">BBHHHBBH4s4s", 0x45, 2, total, 0, 0x4000, 64, 17, 0, b"\x7f\0\0\1", b"\x7f\0\0\1")
        ip = ip[:10] + struct.pack(">H", roce.internet_checksum(ip)) + ip[12:]
    return ip + udp + datagram + roce.icrc(ip, udp, datagram)


def reth(length, va=0x1000, rkey=0x5EED):
    return struct.pack(">QII", va, rkey, length)


def aeth(msn, syndrome=0x1F):
    return struct.pack(">I", (syndrome << 24) | msn)


def right_capture(version=6):
    """SEND, WRITE, READ and FETCH_ADD of one packet and of several, with their answers."""

    def request(name, psn, *rest, **named):
        return encode(name, RESPONDER, START + psn, *rest, version=version, **named)

    def response(name, psn, *rest):
        return encode(name, REQUESTER, START + psn, *rest, version=version)

    body = bytes(range(256)) * 4
    atomic = struct.pack(">QIQQ", 0x2000, 0x5EED, 1, 0)
    return [
        request("SEND_ONLY", 0, b"", b"12345678", ack=True),
        response("ACKNOWLEDGE", 0, aeth(1)),
        request("SEND_FIRST", 1, b"", body),
        request("SEND_MIDDLE", 2, b"", body),
        request("SEND_LAST", 3, b"", b"x", ack=True),
        response("ACKNOWLEDGE", 3, aeth(2)),
        request("WRITE_ONLY", 4, reth(8), b"12345678", ack=True),
        response("ACKNOWLEDGE", 4, aeth(3)),
        request("WRITE_FIRST", 5, reth(1029), body),
        request("WRITE_LAST", 6, b"", b"12345", ack=True),
        response("ACKNOWLEDGE", 6, aeth(4)),
        request("READ_REQUEST", 7, reth(8), ack=True),
        response("READ_RESPONSE_ONLY", 7, aeth(5), b"12345678"),
        request("READ_REQUEST", 8, reth(2049), ack=True),
        response("READ_RESPONSE_FIRST", 8, aeth(6), body),
        response("READ_RESPONSE_MIDDLE", 9, b"", body),
        response("READ_RESPONSE_LAST", 10, aeth(6), b"x"),
        request("FETCH_ADD", 11, atomic, ack=True),
        response("ATOMIC_ACKNOWLEDGE", 11, aeth(7) + struct.pack(">Q", 41)),
    ]


def parsed(frames):
    return [roce.parse(number + 1, frame) for number, frame in enumerate(frames)]


@contextlib.contextmanager
def capture_file(frames):
    """The name of a pcap file of these packets."""
    with tempfile.NamedTemporaryFile(suffix=".pcap") as file:
        file.write(struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101))
        for frame in frames:
            file.write(struct.pack("<4I", 0, 0, len(frame), len(frame)) + frame)
        file.flush()
        yield file.name


class Rules(unittest.TestCase):
    def reject(self, frames, words, sizes=()):
        with self.assertRaises(roce.Wrong) as caught:
            roce.check_capture(parsed(frames), sizes)
        self.assertIn(words, str(caught.exception))

    def test_known_icrc_of_a_hardware_nic(self):
        data = bytes.fromhex(
            "45c2003c718c4000401191610a0011010a001201000012b7002800008100ffff4000011800000000" + "00" * 16
        )
        self.assertEqual(roce.icrc(data[:20], data[20:28], data[28:]).hex(), "82fd002a")

    def test_known_icrc_with_a_payload(self):
        data = bytes.fromhex(
            "45010040047840004011b4d5c0a80007c0a80007c00012b7002caca22460ffff000000d3"
            "00cf17104630818be28935d90e9a95505401be885e500000"
        )
        self.assertEqual(roce.icrc(data[:20], data[20:28], data[28:]).hex(), "78f353f3")

    def test_a_right_capture_passes(self):
        for version in (4, 6):
            seen = roce.check_capture(parsed(right_capture(version)), {8, 2049, 1029})
            self.assertEqual((seen["flows"], seen["mtu"], seen["again"]), (1, MTU, 0))
            self.assertIn("ATOMIC_ACKNOWLEDGE", seen["names"])

    def test_what_is_sent_again_passes(self):
        frames = right_capture()
        seen = roce.check_capture(parsed(frames[:5] + frames[2:]))
        self.assertEqual(seen["again"], 3)

    def test_every_flipped_bit_is_caught(self):
        # Bits that the ICRC masks, and that nothing else shows: traffic class, flow label, hop limit and the
        # UDP checksum; and byte 4 of the BTH.
        masked = {*range(4, 32), *range(56, 64), *range(368, 384), *range(416, 424)}
        frame = right_capture()[0]
        for bit in set(range(len(frame) * 8)) - masked:
            flipped = bytearray(frame)
            flipped[bit // 8] ^= 0x80 >> bit % 8
            with self.subTest(bit=bit), self.assertRaises(roce.Wrong):
                roce.check_packet(roce.parse(1, bytes(flipped)))

    def test_wrong_packets_are_caught(self):
        def only(*arguments, **named):
            return [encode(*arguments, **named)]

        self.reject(only("SEND_ONLY", 1, 0, b"", b"1234567", pad=1, pad_byte=b"x"), "are not zero")
        self.reject(only("SEND_FIRST", 1, 0, b"", b"x" * 1020), "not one path MTU")
        self.reject(only("WRITE_LAST", 1, 0), "is empty")
        self.reject(only("ACKNOWLEDGE", 1, 0, aeth(1, 0x7F)), "syndrome")
        self.reject(only("READ_REQUEST", 1, 0, reth(4), b"four"), "payload")
        self.reject(only("FETCH_ADD", 1, 0, struct.pack(">QIQQ", 4, 1, 1, 0)), "multiple of 8")

    def test_wrong_sequences_are_caught(self):
        frames = right_capture()
        self.reject(frames[:3] + frames[4:], "leaves out 1")
        self.reject(frames[4:], "without its First")
        self.reject(frames[:4] + [encode("SEND_ONLY", RESPONDER, START + 3)], "inside a message")
        self.reject(frames[:1] + [encode("ACKNOWLEDGE", REQUESTER, START, aeth(2))], "MSN 2")
        self.reject(frames[:1] + [encode("ACKNOWLEDGE", REQUESTER, START + 1, aeth(1))], "fit no requests")
        self.reject([encode("WRITE_ONLY", RESPONDER, 0, reth(9), b"12345678")], "RETH says 9")
        self.reject(frames[:14] + [encode("READ_RESPONSE_LAST", REQUESTER, START + 9, aeth(6), b"x")], "2 of 3")
        short = encode("READ_RESPONSE_ONLY", REQUESTER, START + 7, aeth(5), b"1234")
        self.reject(frames[:12] + [short], "READ of 8 got 4")
        self.reject(frames, "sent were [9]", {9})


@unittest.skipUnless(shutil.which("tshark"), "tshark is not installed")
class WithTshark(unittest.TestCase):
    def check(self, frames):
        with capture_file(frames) as name:
            return load_tshark_check().check(name, ())

    def test_a_right_capture_passes(self):
        for version in (4, 6):
            self.assertEqual(self.check(right_capture(version))["packets"], 19)

    def test_tshark_and_the_rules_must_agree(self):
        tshark_check = load_tshark_check()
        with capture_file(right_capture()) as name:
            tshark_check.compare_with_tshark(name, parsed(right_capture()))
            for change in ({"psn": 1}, {"pad": 3}, {"computed_icrc": b"1234"}, {"fields": {}}):
                wrong = parsed(right_capture())
                vars(wrong[6]).update(change)
                with self.subTest(change=change), self.assertRaises(roce.Wrong):
                    tshark_check.compare_with_tshark(name, wrong)

    def test_a_wrong_checksum_is_caught(self):
        frame = bytearray(right_capture(4)[0])
        frame[10] ^= 1
        with self.assertRaises(roce.Wrong):
            self.check([bytes(frame)])


if __name__ == "__main__":
    unittest.main()
