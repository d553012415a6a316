-- What each registration's id stands for, so that the same id with other content is noticed.

-- The first 16 bytes of SHA-256 over the id and the content (name, surname, address): made with
-- the id, so that two registrations of one person have nothing in common. NULL: stored before
-- there were digests, or by an older release; then any content is taken for the same.
ALTER TABLE registrations ADD COLUMN content_digest bytea;

-- As store_registrations without digests (0004), which stays for canaries and for instances of
-- the release before, with three differences:
--
-- * Ids that are known get their rows in the answer, instead of failing the batch. If one of
--   them stands for other content, nothing is stored, and only those rows are answered.
-- * A user is inserted only where the address is free: a conflict would use up a user id.
-- * user_exists tells whether the user is still there.
CREATE FUNCTION store_registrations(
    registration_ids uuid[], names text[], surnames text[], emails text[], received timestamptz[],
    digests bytea[]
) RETURNS TABLE (
    registration_id uuid, outcome text, user_id bigint, content_digest bytea, user_exists boolean
)
LANGUAGE plpgsql AS
$$
#variable_conflict use_column
DECLARE
    known   uuid[];
    created bigint[];
    stored  bigint;
BEGIN
    SELECT array_agg(registration_id) INTO known
      FROM registrations
     WHERE registration_id = ANY (registration_ids);

    IF known IS NOT NULL THEN
        RETURN QUERY
               SELECT registration_id, outcome, user_id, content_digest,
                      -- Not with EXISTS, which may be planned as reading all of users.
                      (SELECT true FROM users WHERE users.id = registrations.user_id) IS NOT NULL
                 FROM registrations
                WHERE registration_id = ANY (known);

        IF EXISTS (SELECT
                     FROM unnest(registration_ids, digests) AS given (registration_id, digest)
                     JOIN registrations USING (registration_id)
                    WHERE content_digest <> digest) THEN
            RETURN;
        END IF;
    END IF;

    WITH made AS (
           INSERT INTO users (name, surname, email)
           SELECT DISTINCT ON (lower(email)) name, surname, email
             FROM unnest(registration_ids, names, surnames, emails)
                  WITH ORDINALITY AS new (registration_id, name, surname, email, position)
            WHERE (known IS NULL OR registration_id <> ALL (known))
                  -- Not with EXISTS, which may be planned as reading all of users.
              AND (SELECT true FROM users WHERE lower(users.email) = lower(new.email)) IS NULL
         ORDER BY lower(email), position
      ON CONFLICT (lower(email)) DO NOTHING
        RETURNING id
    )
    SELECT array_agg(id) INTO created FROM made;

    -- Of registrations with the same address the first becomes the user; the others are
    -- duplicates of it.
    RETURN QUERY
           INSERT INTO registrations
                       (registration_id, outcome, user_id, received_at, content_digest)
           SELECT new.registration_id,
                  CASE WHEN new.is_first AND users.id = ANY (created)
                       THEN 'stored' ELSE 'duplicate' END,
                  users.id,
                  new.received_at,
                  new.digest
             FROM (SELECT registration_id, email, received_at, digest,
                          row_number() OVER (PARTITION BY lower(email) ORDER BY position) = 1
                              AS is_first
                     FROM unnest(registration_ids, emails, received, digests)
                          WITH ORDINALITY
                          AS item (registration_id, email, received_at, digest, position)
                    WHERE known IS NULL OR registration_id <> ALL (known)
                  ) AS new
             JOIN users ON lower(users.email) = lower(new.email)
         ORDER BY new.registration_id
      ON CONFLICT (registration_id) DO NOTHING
        RETURNING registration_id, outcome, user_id, content_digest, true;

    -- One of the ids was stored by somebody else meanwhile, or one of the users was removed. A
    -- user made here may be one too many, so nothing may stay.
    GET DIAGNOSTICS stored = ROW_COUNT;
    IF stored + coalesce(cardinality(known), 0) < cardinality(registration_ids) THEN
        RAISE EXCEPTION 'an id is known, or a user has gone' USING ERRCODE = '40001';
    END IF;
END
$$;
