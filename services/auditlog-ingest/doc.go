// Package auditlogingest takes Kubernetes audit events from where a cluster
// leaves them and publishes them as batches of class audit.
//
// The way of a record: a Source (package source; folders webhook and file)
// finds where it begins and ends and hands its text to the Sink (lane.go). The
// sink normalises it (normalize.go and redact.go, with folder record, which
// reads and trims JSON), drops it if its event id is remembered (seen.go), and
// adds it to the source's open batch. A batch closes after 100 ms or when it
// is full, goes to the outbox, and only then are the source's checkpoint
// written and its callbacks made: the web hook answers, the file's position
// moves.
//
// What several ingesters may read comes from a source.Provider (pull.go divides
// it among them) and goes another way (pulllane.go): its state is in JetStream
// (position.go, recall.go), so that it can move to another ingester.
//
// A record that cannot be an audit event goes to PICKET_DEAD, and what came
// with it goes on. docs/audit.md says what is promised.
package auditlogingest
