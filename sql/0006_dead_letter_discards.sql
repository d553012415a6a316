-- Dead letters that a person discarded, and why. Nothing of what was in them.

CREATE TABLE dead_letter_discards (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id   uuid        NOT NULL,
    route        text        NOT NULL,
    error_code   text        NOT NULL,
    reason       text        NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 500),
    discarded_by text        NOT NULL DEFAULT '' CHECK (char_length(discarded_by) <= 100),
    discarded_at timestamptz NOT NULL DEFAULT now(),

    -- Recorded before the letter is removed: a crash in between records it again.
    CONSTRAINT dead_letter_discards_message_id_route_key UNIQUE (message_id, route)
);
