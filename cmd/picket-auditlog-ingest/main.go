// Command picket-auditlog-ingest takes the audit events of a cluster's API
// servers and publishes them to NATS.
package main

import (
	"os"

	"picket/internal/service"
	"picket/schemas"
	auditlogingest "picket/services/auditlog-ingest"
)

func main() {
	os.Exit(service.Main(schemas.ServiceAudit, auditlogingest.DefaultConfig(), auditlogingest.Run))
}
