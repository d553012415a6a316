-- Stores registrations of canaries: as any other, but nobody else ever sees their users.
--
-- The rows go through store_registrations itself, so what a canary finds working works. Then,
-- still in the same transaction, the users that it made are removed: no list, report or count
-- of users needs to leave them out. That they were made here is certain: store_registrations
-- fails if one of the ids was known before.
CREATE FUNCTION store_canaries(
    registration_ids uuid[], names text[], surnames text[], emails text[], received timestamptz[]
) RETURNS TABLE (registration_id uuid, outcome text, user_id bigint)
LANGUAGE plpgsql AS
$$
#variable_conflict use_column
BEGIN
    RETURN QUERY
           SELECT registration_id, outcome, user_id
             FROM store_registrations(registration_ids, names, surnames, emails, received);

    DELETE FROM users
          USING registrations
          WHERE registrations.registration_id = ANY (registration_ids)
            AND registrations.outcome = 'stored'
            AND users.id = registrations.user_id;
END
$$;
