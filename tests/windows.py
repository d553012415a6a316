"""The windows of docs/reliability.md in which something can go wrong, and the tests of each.

``python -m tests.windows`` writes the appendix of that page.
"""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
HEADING = "## Appendix: the tests of each window\n"

TESTS: dict[int, tuple[str, ...]] = {
    2: ("tests/e2e/test_main_job.py::test_the_same_registration_twice_is_one_user_and_one_mail",),
    3: (
        "tests/integration/messaging/test_publisher.py::test_publish_raises_when_no_queue_is_bound",
        "tests/integration/messaging/test_channel.py::test_only_what_comes_back_fails",
        "tests/e2e/test_ledger.py::test_what_is_accepted_without_a_binding_is_noticed_and_brought_back",
        "tests/integration/queue_receiver/test_ledger.py::test_without_a_management_api_the_ledger_itself_notices_a_missing_binding",
    ),
    4: (
        "tests/integration/messaging/test_channel.py::test_every_property_arrives_as_it_was_given",
        "tests/integration/launcher/test_broker.py::test_broker_keeps_confirmed_messages_when_killed_right_after_its_first_start",
    ),
    5: (
        "tests/integration/messaging/test_channel.py::test_a_full_queue_refuses",
        "tests/integration/messaging/test_publisher.py::test_a_queue_that_was_full_takes_messages_again_though_its_limit_was_taken_away",
        "tests/integration/queue_receiver/test_unpromised.py::test_who_was_told_503_is_unpromised_and_who_was_told_202_is_never_hidden",
    ),
    6: (
        "tests/integration/messaging/test_publisher.py::test_publish_is_refused_without_a_ghost_while_the_broker_is_blocked",
        "tests/integration/launcher/test_stuck_broker.py::test_it_is_found_out_ended_and_started_again",
    ),
    7: (
        "tests/integration/messaging/test_channel.py::test_what_is_unconfirmed_fails_when_the_connection_is_lost",
        "tests/integration/messaging/test_publisher.py::test_publish_fails_while_the_broker_is_away_and_works_when_it_is_back",
    ),
    8: (
        "tests/integration/launcher/test_broker.py::test_broker_keeps_confirmed_messages_when_killed_right_after_its_first_start",
    ),
    9: (
        "tests/integration/messaging/test_publisher.py::test_publish_does_not_hang_on_a_frozen_broker",
    ),
    10: ("tests/e2e/test_main_job.py::test_nothing_is_lost_while_every_service_is_killed",),
    11: (
        "tests/integration/database_service/test_registrations.py::test_the_same_id_again_gets_the_same_answer",
    ),
    12: (
        "tests/integration/database_service/test_outage.py::test_work_in_progress_when_a_backend_is_killed_is_not_promised",
    ),
    13: (
        "tests/integration/database_service/test_registrations.py::test_batches_that_overlap_at_the_same_time_store_each_registration_once",
    ),
    14: ("tests/e2e/test_main_job.py::test_nothing_is_lost_while_every_service_is_killed",),
    15: ("tests/unit/queue_receiver/test_handlers.py",),
    16: (
        "tests/integration/sender/test_service.py::test_what_another_program_publishes_is_sent_once",
    ),
    17: (
        "tests/integration/messaging/test_poison.py::test_poison_is_dead_lettered_alone",
        "tests/integration/messaging/test_poison.py::test_many_poisons_beside_each_other_take_no_other_message_with_them",
        "tests/integration/messaging/test_poison.py::test_poison_that_leaves_a_lease_behind_at_each_crash_is_dead_lettered_alone",
        "tests/integration/messaging/test_consumer.py::test_a_quarantined_message_with_a_lease_elsewhere_delays_no_other",
        "tests/integration/messaging/test_consumer.py::test_a_quarantined_message_among_others_is_handled_alone_on_the_channel_it_came_by",
        "tests/integration/messaging/test_consumer.py::test_a_quarantined_message_that_is_deferred_again_and_again_is_handled_in_the_end",
    ),
    18: (
        "tests/e2e/test_malformed_messages.py::test_each_is_dead_lettered_with_its_reason_or_done_and_no_other_is_affected",
        "tests/integration/messaging/test_consumer.py::test_properties_that_no_client_can_read_stop_no_other_message",
    ),
    19: ("tests/e2e/test_main_job.py::test_nothing_is_lost_while_every_service_is_killed",),
    20: (
        "tests/integration/messaging/test_consumer.py::test_consuming_goes_on_after_its_queue_was_deleted_and_made_again",
        "tests/integration/messaging/test_consumer.py::test_a_queue_that_is_made_again_at_once_is_consumed",
        "tests/integration/queue_receiver/test_ledger.py::test_what_never_reached_the_work_queue_is_lost_until_it_is_repaired",
    ),
    21: ("tests/e2e/test_outages.py::test_a_part_that_hangs_only_delays",),
    23: (
        "tests/integration/sender/test_service.py::test_mails_that_a_dead_sender_has_leased_hold_up_no_others",
        "tests/integration/database_service/test_notifications.py::test_a_lease_that_ran_out_passes_to_the_next",
    ),
    24: ("tests/e2e/test_main_job.py::test_nothing_is_lost_while_every_service_is_killed",),
    25: ("tests/integration/sender/test_smtp.py::test_a_link_that_ends_names_the_phase",),
    26: (
        "tests/integration/sender/test_service.py::test_a_lost_final_answer_sends_again_with_the_same_message_id",
    ),
    27: (
        "tests/integration/sender/test_service.py::test_a_greylisted_mail_arrives_later",
        "tests/integration/sender/test_smtp.py::test_after_a_421_the_connection_is_not_used_again",
        "tests/integration/sender/test_service.py::test_one_odd_recipient_stops_no_other_mail",
        "tests/integration/sender/test_service.py::test_a_server_that_hangs_up_on_everybody_for_a_while_is_an_outage",
    ),
    28: (
        "tests/integration/sender/test_service.py::test_a_refused_recipient_is_failed_and_no_dead_letter",
        "tests/e2e/test_mails_again.py::test_refused_then_sent_again_then_back_then_no_more",
    ),
    29: (
        "tests/integration/database_service/test_notifications.py::test_what_was_settled_is_not_sent_again",
    ),
    30: (
        "tests/integration/sender/test_service.py::test_two_senders_send_each_mail_once",
        "tests/integration/database_service/test_notifications.py::test_of_many_senders_at_the_same_time_one_is_granted",
    ),
    31: (
        "tests/integration/sender/test_smtp.py::test_a_mail_is_not_sent_where_the_last_moment_forbids_it",
        "tests/integration/sender/test_company.py::test_an_announced_mail_that_may_no_longer_be_sent_is_not",
    ),
    32: (
        "tests/integration/report_generator/test_reports.py::test_what_a_crash_left_is_swept_and_the_report_made",
    ),
    33: (
        "tests/integration/report_generator/test_reports.py::test_what_a_crash_left_is_swept_and_the_report_made",
    ),
    34: (
        "tests/integration/database_service/test_reports_http.py::test_the_same_record_twice_is_one",
    ),
    35: (
        "tests/integration/report_generator/test_reports.py::test_what_cannot_be_written_ends_as_failed_and_dead_letter",
    ),
    37: (
        "tests/integration/database_service/test_notifications.py::test_a_lease_that_ran_out_passes_to_the_next",
    ),
    38: (
        "tests/e2e/test_outages.py::test_a_part_that_is_killed_only_delays",
        "tests/integration/database_service/test_outage.py::test_the_service_comes_back_after_an_outage",
    ),
    39: (
        "tests/integration/database_service/test_outage.py::test_a_server_that_may_not_is_an_outage_not_an_error",
        "tests/integration/database_service/test_locked_rows.py::test_a_row_of_one_user_left_uncommitted_holds_up_no_other_registration",
    ),
    40: ("tests/e2e/test_outages.py::test_a_part_that_hangs_only_delays",),
    41: ("tests/integration/launcher/test_broker.py::test_broker_has_the_whole_topology",),
    42: (
        "tests/integration/messaging/test_publisher.py::test_publisher_names_what_is_missing_at_the_broker",
    ),
    43: ("tests/unit/common/contracts/test_topology.py",),
    44: (
        "tests/integration/messaging/test_dead_letters.py::test_a_dead_letter_stays_until_its_way_back_is_confirmed",
        "tests/e2e/test_dead_letters.py::test_a_receiver_killed_in_the_middle_of_a_redrive_duplicates_nothing",
    ),
    45: (
        "tests/integration/database_service/test_registrations.py::test_the_answer_stays_the_same_after_the_user_was_deleted",
    ),
    46: (
        "tests/integration/database_service/test_registrations.py::test_the_answer_stays_the_same_after_the_user_was_deleted",
    ),
    50: (
        "tests/integration/messaging/test_consumer.py::test_draining_finishes_what_runs_and_leaves_the_rest",
        "tests/integration/sender/test_service.py::test_a_stop_in_the_middle_notes_what_is_unsure",
    ),
    51: (
        "tests/e2e/test_main_job.py::test_a_known_address_is_told_once_and_the_answer_does_not_differ",
    ),
}
"""Window → its tests, as pytest names them; a file alone where all of it is about the window."""


def appendix() -> str:
    """The tests of each window as sentences, with links to their files."""
    return "".join(
        f"\n### Window {number}\n\n{''.join(map(_item, tests))}" for number, tests in TESTS.items()
    )


def _item(test: str) -> str:
    path, _, name = test.partition("::")
    sentence = name.removeprefix("test_").replace("_", " ") or Path(path).name
    return f"* [{sentence}](../{path})\n"


def windows(page: str) -> Iterator[tuple[int, int]]:
    """The windows of the page's table, each with the number of tests that its row shows."""
    for number, tests in re.findall(r"^\| (\d+) \|.*\|([^|]*)\|$", page, flags=re.MULTILINE):
        shown = re.search(rf"\[(\d+)\]\(#window-{number}\)", tests)
        yield int(number), int(shown[1]) if shown else 0


if __name__ == "__main__":
    page, heading, _ = PAGE.read_text().partition(HEADING)
    PAGE.write_text(f"{page}{heading}{appendix()}")
