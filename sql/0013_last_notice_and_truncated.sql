-- Columns get the names of what they hold.
--
-- A rename waits for the end of every statement on its table, and all others wait behind it: so it
-- gives up after a second, and the service tries again every few seconds. A long report delays the
-- start of the new release, not the work of the old one.
--
-- An instance of the release before that still runs finds the old names no longer. It answers 500
-- to claims of mails to owners of known addresses, and to what it is asked of the ledger, which goes
-- on where it was once the instance is replaced. Those mails' messages go to the retry steps, and to
-- the dead letters if the instance still runs when these are used up: send them back afterwards.
-- All else works, and nothing is lost.
SET LOCAL lock_timeout = '1s';

-- The one message that may tell the owner of the address that it was registered again, and when it
-- was last allowed to.
ALTER TABLE users RENAME COLUMN told_by TO last_notice_by;
ALTER TABLE users RENAME COLUMN told_at TO last_notice_at;

-- How many messages the stream dropped before they were read.
ALTER TABLE ledger_positions RENAME COLUMN unread TO truncated;
