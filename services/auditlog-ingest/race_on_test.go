//go:build race

package auditlogingest

// pulled is how many records the tests of the clouds drive through each: the
// race detector takes ten times the time for each.
const pulled = 10_000
