"""Attacks and faults P01 to P75, and the tests that try each.

A row is held when every test of it passes. Tests of this folder belong to the
row that their name begins with (`test_p07_...`); the others are named here.
"""

import ast
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
NAMED = re.compile(r"test_p([0-9]{2})_")
COLUMNS = 5
# What the runs since the last whole table have found: node id to passed.
RESULTS = ROOT / "build/rows.json"

ENGINE = "tests/unit/engine"
CRYPTO = "tests/unit/crypto"
WIRE = "tests/unit/wire"
CONFIG = "tests/unit/config"
LEAKS = "tests/netns/test_leaks_"


@dataclass(frozen=True)
class Row:
    """What is done to us, and where it is tried: FILE::TEST."""

    title: str
    tests: tuple[str, ...] = field(default=())


def _in(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{file}.py::test_{name}" for name in names)


CLIENT = f"{ENGINE}/test_client"
CLIENTS = f"{ENGINE}/test_server_clients"
HELLO = f"{ENGINE}/test_server_hello"
RELIABLE = f"{ENGINE}/test_reliable"
CHANNEL = f"{ENGINE}/test_data_channel"
EPOCH = f"{ENGINE}/test_epoch_key"
PAIR = f"{ENGINE}/test_pair"
LIVE = f"{ENGINE}/test_live"
INFO = f"{ENGINE}/test_peer_info"
WRAP = f"{CRYPTO}/test_control_wrap"
TLS = f"{CRYPTO}/test_tls"
VERIFY = f"{CRYPTO}/test_verify"
CBC = f"{CRYPTO}/test_cbc"
REPLAY = f"{CRYPTO}/test_replay"
STRANGERS = "tests/property/test_strangers"
PULLED = f"{CONFIG}/test_pulled"
PLANE = "tests/unit/dataplane/test_userspace"
ROTATION = "tests/unit/runtime/test_rotation"
RESOLVE = "tests/unit/runtime/test_resolve"
CLOSED = "tests/netns/test_closed"

ROWS = {
    "P01": Row(
        "resets that reflect and multiply",
        _in(
            HELLO,
            "a_flood_is_answered_with_fewer_bytes_than_it_has",
            "one_network_gets_so_many_answers_in_a_period",
        ),
    ),
    "P02": Row(
        "a third packet from a forged source",
        _in(
            HELLO,
            "the_cookie_is_good_for_its_address_its_client_and_a_while",
            "no_bit_of_a_cookie_is_ignored",
            "what_is_not_the_third_packet_opens_nothing",
        ),
    ),
    "P03": Row(
        "packets without the key at a server with one",
        _in(CLIENTS, "forged_first_packets_take_no_memory"),
    ),
    "P04": Row(
        "a tag that is wrong",
        (
            *_in(WRAP, "no_byte_may_change"),
            *_in(HELLO, "a_wrapped_packet_with_any_byte_changed_is_silence"),
            *_in("tests/hostile/test_secrets", "tags_meet_in_constant_time"),
        ),
    ),
    "P05": Row(
        "control packets replayed",
        (
            *_in(WRAP, "openvpns_packets_replayed_are_refused"),
            *_in(CLIENT, "replayed_control_packets_change_nothing"),
            *_in(STRANGERS, "what_was_heard_is_refused_when_it_comes_again"),
        ),
    ),
    "P06": Row(
        "wrapped client keys that are malformed, or come again",
        _in(
            WRAP,
            "lengths_of_wrapped_keys_that_are_wrong",
            "a_wrapped_key_may_not_reach_into_the_header",
            "no_byte_of_a_wrapped_key_may_change",
        ),
    ),
    "P07": Row(
        "a wrapped key sent unasked, or asked for",
        (
            *_in(LIVE, "the_wrapped_key_comes_again_for_a_cookie"),
            *_in(f"{WIRE}/test_control", "early_negotiation_that_is_malformed"),
        ),
    ),
    "P08": Row(
        "packets of no size",
        (
            *_in(HELLO, "every_short_or_senseless_packet_is_dropped"),
            *_in(CLIENT, "any_bytes_are_only_counted"),
        ),
    ),
    "P09": Row(
        "control packets that are too big",
        _in(CLIENT, "any_bytes_are_only_counted"),
    ),
    "P10": Row(
        "opcodes that are unknown, or the other side's",
        _in(f"{WIRE}/test_opcode", "other_opcodes_are_refused"),
    ),
    "P11": Row("a reset with a key id"),
    "P12": Row(
        "session ids that are zero, unknown or stale",
        (
            *_in(WRAP, "headers_that_are_malformed"),
            *_in(CLIENTS, "what_another_client_sent_is_nothing_from_elsewhere"),
            *_in(STRANGERS, "a_refused_packet_leaves_a_count"),
        ),
    ),
    "P13": Row(
        "acknowledgements of what was never sent",
        (
            *_in(f"{WIRE}/test_control", "bodies_that_are_malformed"),
            *_in(RELIABLE, "ignores_acks_of_what_was_never_sent"),
        ),
    ),
    "P14": Row(
        "one packet lost again and again",
        (
            *_in(CLIENT, "one_packet_lost_for_most_of_the_window"),
            *_in(
                RELIABLE,
                "the_backoff_never_exceeds_half_the_hand_window",
                "resends_early_after_three_later_acks",
            ),
        ),
    ),
    "P15": Row(
        "message numbers out of the window",
        _in(RELIABLE, "accepts_only_what_the_window_holds"),
    ),
    "P16": Row(
        "every control packet twice",
        _in(RELIABLE, "a_duplicate_is_acked_again_and_not_handed_over"),
    ),
    "P17": Row("a hard reset that is not message 0"),
    "P18": Row(
        "a forged reset for a live session",
        (
            *_in(
                CLIENT,
                "a_forged_reset_does_not_touch_a_live_session",
                "a_reset_that_answers_nothing_of_ours_is_not_believed",
            ),
            *_in(CLIENTS, "a_spoofed_reset_disturbs_nobody"),
        ),
    ),
    "P19": Row(
        "TLS in the smallest packets, reordered",
        (
            *_in(CLIENT, "the_smallest_control_packets"),
            *_in(PAIR, "converges"),
        ),
    ),
    "P20": Row(
        "several commands in a record, one in two",
        (
            *_in(CLIENT, "several_commands_in_one_record"),
            *_in(
                f"{WIRE}/test_messages",
                "a_message_split_over_two_records_is_two",
            ),
        ),
    ),
    "P21": Row(
        "control characters in messages",
        (
            *_in(
                f"{WIRE}/test_messages",
                "control_characters_reject_the_message_at_every_place",
                "an_excerpt_is_short",
            ),
            *_in(CLIENT, "what_is_no_message_is_counted"),
        ),
    ),
    "P22": Row(
        "malformed settings",
        (
            *_in(CLIENT, "unusable_settings_end_the_session_unapplied"),
            *_in(PULLED, "nonsense_is_reported_and_ends_nothing"),
        ),
    ),
    "P23": Row(
        "settings without end",
        _in(
            CLIENT,
            "waits_for_the_last_of_several_replies",
            "replies_without_end_end_the_session",
        ),
    ),
    "P24": Row("unknown options"),
    "P25": Row(
        "privileged options",
        (
            *_in(PULLED, "only_pushable_rows_are_applied"),
            *_in(
                "tests/property/test_config",
                "no_push_reaches_outside_the_tunnel",
            ),
        ),
    ),
    "P26": Row(
        "domains that are commands",
        _in("tests/unit/keeper/test_bounds", "configure"),
    ),
    "P27": Row(
        "addresses of another family or form",
        _in(PULLED, "an_address_that_is_none_is_refused"),
    ),
    "P28": Row("MTUs out of bounds", _in(PULLED, "options_set_their_field")),
    "P29": Row(
        "routes past the tunnel, and too many",
        (
            *_in(
                PULLED,
                "routes_that_are_refused",
                "ipv6_routes_that_are_refused",
                "there_are_no_more_than_1008_routes",
            ),
            *_in(
                f"{LEAKS}routes",
                "l60_the_server_pushes_a_route_past_the_tunnel",
            ),
        ),
    ),
    "P30": Row(
        "settings changed in mid-session",
        (
            *_in(CLIENT, "an_update_is_applied_whole_or_not_at_all"),
            *_in(f"{LIVE}_27", "a_27_server_changes_settings_while_connected"),
        ),
    ),
    "P31": Row(
        "compression",
        _in(CHANNEL, "compressed_content_is_dropped"),
    ),
    "P32": Row(
        "a weaker cipher",
        (
            *_in(INFO, "no_other_cipher_is_used"),
            *_in(LIVE, "a_refused_cipher_is_a_reason"),
        ),
    ),
    "P33": Row(
        "weaker TLS, renegotiation, resumption",
        _in(
            TLS,
            "below_1_2_nothing_is_spoken_whatever_the_profile_says",
            "no_session_is_resumed",
            "renegotiation_is_refused",
            "versions_that_do_not_meet",
        ),
    ),
    "P34": Row(
        "protocol flags that are unknown, or do not fit",
        _in(INFO, "what_the_plane_cannot_do_is_refused"),
    ),
    "P35": Row(
        "a client's certificate as the server's",
        (
            *_in(TLS, "a_client_certificate_is_no_server"),
            *_in(VERIFY, "extended_key_usages", "key_usages"),
        ),
    ),
    "P36": Row(
        "names that nearly match",
        _in(VERIFY, "names_match_exactly", "a_name_with_a_nul_is_refused"),
    ),
    "P37": Row(
        "certificates out of their time",
        _in(
            TLS,
            "a_certificate_out_of_its_time_is_refused",
            "an_expired_certificate_hints_at_the_clock",
        ),
    ),
    "P38": Row(
        "revocation, and lists that are of no use",
        _in(
            TLS,
            "a_revoked_server_is_refused",
            "lists_out_of_their_time_are_refused",
            "a_list_of_another_issuer_is_not_enough",
            "a_revoked_intermediate_is_refused",
        ),
    ),
    "P39": Row(
        "another authority, self-signed, long chains",
        (
            *_in(
                TLS,
                "another_authority_is_unknown",
                "a_self_signed_server_is_refused",
                "a_long_chain_is_refused",
                "a_key_of_16384_bits_costs_next_to_nothing",
            ),
            *_in(f"{CRYPTO}/test_tls_fuzz", "any_certificate_is_judged"),
        ),
    ),
    "P40": Row(
        "refusals of every form",
        (
            *_in(CLIENT, "refusals", "auth_retry"),
            *_in(
                ROTATION,
                "a_server_may_ask_for_a_longer_wait_and_never_a_shorter_one",
            ),
        ),
    ),
    "P41": Row(
        "tokens that expire, or are none",
        (
            *_in(CLIENT, "a_refused_token_gives_way_to_the_password"),
            *_in(f"{ENGINE}/test_server_parts", "what_is_no_token_is_not_one"),
        ),
    ),
    "P42": Row(
        "messages without end",
        _in(CLIENT, "pending_authentication_is_bounded"),
    ),
    "P43": Row(
        "RESTART, HALT and EXIT",
        _in(CLIENT, "the_server_ends_the_session"),
    ),
    "P44": Row(
        "malformed key method 2",
        (
            *_in(f"{WIRE}/test_key_method", "messages_that_are_malformed"),
            *_in("tests/hostile/test_fuzz_targets", "seeds"),
        ),
    ),
    "P45": Row(
        "TLS that ends, or is none",
        _in(
            TLS,
            "a_closed_connection_is_a_session_error",
            "garbage_is_a_session_error",
        ),
    ),
    "P46": Row(
        "a handshake that never ends",
        (
            *_in(CLIENT, "an_answer_without_tls", "no_answer"),
            *_in(ROTATION, "the_wait_doubles_by_the_pass_and_has_a_cap"),
        ),
    ),
    "P47": Row(
        "renegotiation by both at once, under loss",
        (
            *_in(PAIR, "both_sides_renegotiate_under_loss"),
            *_in(LIVE, "both_sides_renegotiate_at_once"),
        ),
    ),
    "P48": Row(
        "soft resets too early, or too many",
        _in(CLIENT, "a_soft_reset_before_the_keys_is_ignored"),
    ),
    "P49": Row(
        "key ids go round",
        _in(PAIR, "renegotiates_again_and_again"),
    ),
    "P50": Row(
        "data of a key that is gone, or not there yet",
        _in(CHANNEL, "an_unknown_key_id_is_dropped"),
    ),
    "P51": Row("packets of a session that is over"),
    "P52": Row(
        "a later key in the static wrap",
        _in(CLIENT, "a_later_key_in_a_static_wrap_is_refused"),
    ),
    "P53": Row(
        "data replayed",
        (
            *_in(CHANNEL, "a_replayed_packet_is_dropped"),
            *_in(
                "tests/property/test_crypto",
                "a_replay_window_does_what_the_slow_one_does",
            ),
        ),
    ),
    "P54": Row(
        "data out of order, or late",
        _in(
            REPLAY,
            "the_window_is_64_wide",
            "ids_below_an_old_one_come_too_late",
        ),
    ),
    "P55": Row("gaps in a stream"),
    "P56": Row(
        "packet ids run out",
        (
            *_in(CHANNEL, "packet_ids_are_never_used_twice"),
            *_in(CLIENT, "a_reached_limit_makes_a_new_key"),
            *_in(
                "tests/property/test_offload",
                "a_batch_never_reuses_a_packet_id",
            ),
        ),
    ),
    "P57": Row(
        "a key used too much, or forged for",
        (
            *_in(CLIENT, "a_reached_limit_makes_a_new_key"),
            *_in(INFO, "only_gcm_keys_wear_out"),
        ),
    ),
    "P58": Row(
        "epochs that jump",
        _in(
            EPOCH,
            "epochs_near_the_peers_are_taken",
            "a_forged_epoch_moves_nothing",
            "the_end_of_the_epochs_is_not_followed",
            "ids_and_epochs_end",
        ),
    ),
    "P59": Row(
        "data that is forged or cut",
        _in(
            CHANNEL,
            "any_flipped_bit_is_a_counted_drop",
            "any_truncation_is_a_counted_drop",
        ),
    ),
    "P60": Row(
        "another peer's id, another version",
        _in(CHANNEL, "v1_authenticates_the_packet_id_alone"),
    ),
    "P61": Row(
        "CBC: padding as an oracle",
        _in(
            CBC,
            "without_a_digest_wrong_padding_and_length_look_alike",
            "nothing_that_is_not_authentic_opens",
        ),
    ),
    "P62": Row(
        "what is inside is no packet, or not ours",
        (
            *_in(
                CHANNEL,
                "only_whole_ip_packets_reach_the_tunnel_device",
                "a_foreign_source_is_dropped",
            ),
            *_in(f"{LEAKS}inbound", "l41_the_server_uses_the_qube_as_a_router"),
        ),
    ),
    "P63": Row(
        "an address that moves, or is moved",
        (
            *_in(CLIENTS, "only_its_owner_floats_to_an_address_that_is_taken"),
            *_in(
                "tests/interop/test_server_net",
                "a_client_may_move_and_nobody_else_may_move_it",
            ),
        ),
    ),
    "P64": Row(
        "the tunnel inside itself",
        _in(
            f"{LEAKS}routes",
            "l14_routes_of_the_uplinks_dhcp",
            "l17_a_qube_sends_to_the_servers_port",
        ),
    ),
    "P65": Row(
        "loss, disorder, repetition, corruption",
        (
            *_in(PAIR, "converges"),
            *_in(
                "tests/interop/test_lossy_link",
                "a_fifth_of_all_datagrams_lost",
            ),
        ),
    ),
    "P66": Row("silence", _in(CLIENT, "ping_restart")),
    "P67": Row(
        "a path with a hole for large packets",
        _in(
            f"{ENGINE}/test_path_mtu",
            "finds_what_the_path_carries",
            "a_path_that_shrinks_is_noticed_while_it_is_used",
        ),
    ),
    "P68": Row(
        "a server that dies and comes back",
        (
            *_in(CLOSED, "the_server_dies_and_comes_back"),
            *_in(LIVE, "a_dead_server_is_noticed_by_ping_restart"),
        ),
    ),
    "P69": Row(
        "names with many addresses, or none",
        _in(
            RESOLVE,
            "every_address_of_a_name_is_a_candidate",
            "an_answer_to_another_question_is_no_answer",
        ),
    ),
    "P70": Row(
        "a NAT that forgets",
        _in(
            "tests/interop/test_server_net",
            "a_client_may_move_and_nobody_else_may_move_it",
        ),
    ),
    "P71": Row(
        "streams that are cut, trickle, or end",
        (
            *_in(
                PLANE,
                "an_empty_frame_ends_the_session",
                "a_stream_arrives_in_any_pieces",
                "a_closed_stream_ends_the_session",
            ),
            *_in(
                f"{WIRE}/test_framing",
                "a_length_of_zero_or_too_much_is_refused",
            ),
        ),
    ),
    "P72": Row("one way is lost"),
    "P73": Row("errors by ICMP", _in(PLANE, "an_error_on_receive_is_counted")),
    "P74": Row("a clock that jumps"),
    "P75": Row(
        "half-open handshakes",
        _in(CLIENTS, "half_open_handshakes_are_bounded_and_end"),
    ),
}


@cache
def functions(file: str) -> frozenset[str]:
    """Give the names of the tests of a file."""
    tree = ast.parse((ROOT / file).read_text())
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


@cache
def tried_by(row: str) -> frozenset[str]:
    """Give all tests of a row: FILE::TEST."""
    found = set(ROWS[row].tests)
    for path in HERE.glob("test_*.py"):
        file = str(path.relative_to(ROOT))
        for name in functions(file):
            match = NAMED.match(name)
            if match and f"P{match[1]}" == row:
                found.add(f"{file}::{name}")
    return frozenset(found)


def summary(outcomes: Iterable[tuple[str, bool]]) -> list[str]:
    """Give the table of a run; outcomes: (node id, passed) of its tests.

    A row is tried when one of its tests ran, and held when all that ran
    passed. Nothing when the run tried none.
    """
    ran: dict[str, list[bool]] = {}
    for node, passed in outcomes:
        ran.setdefault(node.partition("[")[0], []).append(passed)
    cells, tried, held = [], 0, 0
    for row in ROWS:
        results = [one for test in tried_by(row) for one in ran.get(test, ())]
        if not results:
            cells.append(f"{row} -")
            continue
        tried += 1
        held += all(results)
        mark = "held" if all(results) else "LOST"
        cells.append(f"{row} {mark} {sum(results)}/{len(results)}")
    if not tried:
        return []
    lines = [
        "  ".join(f"{cell:<15}" for cell in cells[at : at + COLUMNS]).rstrip()
        for at in range(0, len(cells), COLUMNS)
    ]
    return [*lines, f"{len(ROWS)} rows, {tried} tried in this run, {held} held"]


def remember(outcomes: Iterable[tuple[str, bool]]) -> None:
    """Keep what a run found for the table of all runs; the last one counts."""
    of_rows = {test for row in ROWS for test in tried_by(row)}
    found = {
        node: passed
        for node, passed in outcomes
        if node.partition("[")[0] in of_rows
    }
    if not found:
        return
    RESULTS.parent.mkdir(exist_ok=True)
    new = RESULTS.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(recall() | found))
    new.replace(RESULTS)


def recall() -> dict[str, bool]:
    """Give what was remembered."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
