-- Recordings in DuckDB, with exact times. In the folder of the recordings:
--
--     duckdb -init /path/to/config/duckdb-recording.sql
--     select * from trades where symbol = 'AAPL' order by arrived limit 10;
--
-- DuckDB's identifiers ignore case, so `read_json` would merge Alpaca's keys `T` and `t`, and `S` and `s`. JSON paths
-- do not; and TIMESTAMP_NS keeps nanoseconds. A line that begins with `recording` is the recorder's own.
create or replace view lines as
select filename, json ->> '$.recording' as recording, (json ->> '$.at')::bigint as at_ns, json
from read_json_objects('*.jsonl.zst*', format = 'newline_delimited', compression = 'zstd', filename = true);

create or replace view messages as
select
    make_timestamp_ns(at_ns) as arrived, -- UTC
    json ->> '$.T' as kind,
    json ->> '$.S' as symbol,
    rtrim(json ->> '$.t', 'Z')::timestamp_ns as time, -- Alpaca's, UTC
    json
from lines
where recording is null;

create or replace view trades as
select arrived, symbol, time, (json ->> '$.p')::double as price, (json ->> '$.s')::double as size, json ->> '$.x' as exchange
from messages
where kind = 't';

create or replace view quotes as
select
    arrived, symbol, time,
    (json ->> '$.bp')::double as bid, (json ->> '$.bs')::double as bid_size,
    (json ->> '$.ap')::double as ask, (json ->> '$.as')::double as ask_size
from messages
where kind = 'q';

create or replace view bars as
select
    arrived, symbol, time,
    (json ->> '$.o')::double as open, (json ->> '$.h')::double as high, (json ->> '$.l')::double as low,
    (json ->> '$.c')::double as close, (json ->> '$.v')::double as volume
from messages
where kind = 'b';

-- What is missing: messages that were dropped, and outages of the connection to Alpaca.
create or replace view missing as
select filename, recording, make_timestamp_ns(at_ns) as arrived, (json ->> '$.messages')::bigint as messages,
    json ->> '$.reason' as reason
from lines
where recording in ('gap', 'outage', 'resumed');
