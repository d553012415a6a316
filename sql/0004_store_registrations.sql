-- Stores registrations with distinct ids that seem to be unknown, and their users.
--
-- A function, because this way it is one way to PostgreSQL and back instead of four, and
-- because in it each statement has a snapshot of its own: only a new one sees the users that
-- others committed while the first statement waited for their addresses.
--
-- Two batches never wait for each other in a circle: each takes its addresses in order, then
-- its ids in order. Waiting for another batch's address ends with that batch.
CREATE FUNCTION store_registrations(
    registration_ids uuid[], names text[], surnames text[], emails text[], received timestamptz[]
) RETURNS TABLE (registration_id uuid, outcome text, user_id bigint)
LANGUAGE plpgsql AS
$$
#variable_conflict use_column
DECLARE
    created bigint[];
    stored  bigint;
BEGIN
    WITH made AS (
           INSERT INTO users (name, surname, email)
           SELECT DISTINCT ON (lower(email)) name, surname, email
             FROM unnest(names, surnames, emails)
                  WITH ORDINALITY AS new (name, surname, email, position)
         ORDER BY lower(email), position
      ON CONFLICT (lower(email)) DO NOTHING
        RETURNING id
    )
    SELECT array_agg(id) INTO created FROM made;

    -- Of registrations with the same address the first becomes the user; the others are
    -- duplicates of it.
    RETURN QUERY
           INSERT INTO registrations (registration_id, outcome, user_id, received_at)
           SELECT new.registration_id,
                  CASE WHEN new.is_first AND users.id = ANY (created)
                       THEN 'stored' ELSE 'duplicate' END,
                  users.id,
                  new.received_at
             FROM (SELECT registration_id, email, received_at,
                          row_number() OVER (PARTITION BY lower(email) ORDER BY position) = 1
                              AS is_first
                     FROM unnest(registration_ids, emails, received)
                          WITH ORDINALITY AS item (registration_id, email, received_at, position)
                  ) AS new
             JOIN users ON lower(users.email) = lower(new.email)
         ORDER BY new.registration_id
      ON CONFLICT (registration_id) DO NOTHING
        RETURNING registration_id, outcome, user_id;

    -- One of the ids is stored already, or one of the users was removed meanwhile. A user made
    -- here may be one too many, so nothing may stay.
    GET DIAGNOSTICS stored = ROW_COUNT;
    IF stored < cardinality(registration_ids) THEN
        RAISE EXCEPTION 'an id is known, or a user has gone' USING ERRCODE = '40001';
    END IF;
END
$$;
