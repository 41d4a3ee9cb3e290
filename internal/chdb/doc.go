// Package chdb is ClickHouse for machines that have none: the engine as a
// library (libchdb.so), loaded without cgo, and ClickHouse's HTTP interface
// served in front of it. Engine runs statements, Handler speaks HTTP, Serve is
// both as a program; cmd/picket-clickhouse is its command line.
//
// It belongs in a process of its own: the library takes 210 MB, a crash in it
// ends the process, and there can be one engine in a process. The services of
// Picket talk to it as to any ClickHouse, over HTTP, and link nothing of it.
//
// Each request runs on a connection of the library of its own, which costs a
// tenth of a millisecond. So requests run at the same time, and nothing of one
// (settings, current database, temporary tables) is seen by another.
//
// There is one user, who needs no password: whoever can connect can read and
// change all tables. That is why the default address is a loopback one, and
// why the process confines itself to its data folder (Confine).
//
// # The interface
//
// What of ClickHouse's HTTP interface is kept, each line with a test of the
// same number (TestFeature01 and so on) that sends the same request:
//
//  1. GET / without a query, /ping and /replicas_status answer «Ok.»; another
//     path answers 404.
//  2. GET and HEAD with the statement in the URL parameter query.
//  3. POST with the statement in the body.
//  4. POST with both: they are joined by a line feed.
//  5. Methods other than POST imply readonly=2: what changes something is
//     refused (code 164).
//  6. The format of the result: FORMAT clause, else default_format, else the
//     header X-ClickHouse-Format, else TabSeparated; told in the headers
//     X-ClickHouse-Format and Content-Type.
//  7. Query parameters: param_name for {name:Type}, in escaped form.
//  8. Settings as URL parameters, for this request only; an unknown one is
//     refused (code 115).
//  9. The current database: parameter database or header X-ClickHouse-Database.
//  10. query_id or header X-ClickHouse-Query-Id is given back in the header
//     X-ClickHouse-Query-Id, or one is made. The engine names its queries
//     itself: query_id() and system.processes have another.
//  11. Exceptions: ClickHouse's status for the code, the code in the header
//     X-ClickHouse-Exception-Code, the text with the version in the body.
//  12. An exception after the start of the result was sent: a block between
//     __exception__ marks in the body, with the tag of the header
//     X-ClickHouse-Exception-Tag, and the connection is cut.
//  13. X-ClickHouse-Summary, where the headers are sent after the result is
//     complete: results up to 1 MiB, and any with wait_end_of_query.
//  14. X-ClickHouse-Server-Display-Name and X-ClickHouse-Timezone.
//  15. wait_end_of_query=1: nothing is sent before the query has ended, so that
//     its status is right; up to 4 GiB, on disk. buffer_size: how much is held
//     back in memory before the headers are sent, 1 to 16 MiB.
//  16. Request bodies with Content-Encoding gzip, br or deflate.
//  17. Request bodies in ClickHouse's own framing with decompress=1: LZ4, ZSTD
//     or none.
//  18. Responses with Content-Encoding gzip, br or deflate as Accept-Encoding
//     asks, unless enable_http_compression=0.
//  19. Responses in ClickHouse's own framing with compress=1: LZ4, or what
//     network_compression_method says.
//  20. Native blocks at the revision of client_protocol_version.
//  21. INSERT with its data behind the statement in the body, or all of the
//     body: VALUES and every format the engine reads, 256 MiB by default
//     (--max-body); a longer one is refused (413, code 229) and inserts nothing.
//  22. insert_deduplication_token: the same token inserts once, also after a
//     restart.
//  23. Requests at the same time: 16 queries by default (--max-queries), more
//     wait, and are refused after 30 s (code 202).
//  24. A client that goes away ends its SELECT. An INSERT that has arrived is
//     carried out; one that has not inserts nothing.
//  25. The result of a SELECT is streamed, whatever its size and format. That
//     of other statements may have 64 MiB (code 396 above).
//  26. User, password, quota_key and role are taken in every form ClickHouse
//     knows, and mean nothing.
//  27. Refused with a sentence that says so: sessions (session_id), external
//     tables (multipart/form-data), several statements in one request, INTO
//     OUTFILE, FROM INFILE, other methods.
//  28. Stopped by SIGTERM or SIGINT, running queries end first; the same data
//     is there at the next start, also after SIGKILL.
//
// The rest of ClickHouse's interface (handlers of one's own, /play, progress
// headers, CORS, exceptions inside of formats) is not kept.
package chdb
