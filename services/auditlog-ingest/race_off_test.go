//go:build !race

package auditlogingest

// pulled is how many records the tests of the clouds drive through each.
const pulled = 100_000
