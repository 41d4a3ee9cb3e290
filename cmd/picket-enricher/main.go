// Command picket-enricher joins raw events with Kubernetes metadata and
// publishes them for the detector and the sink.
package main

import (
	"os"

	"picket/internal/service"
	"picket/services/enricher"
)

func main() { os.Exit(service.Main("enricher", enricher.DefaultConfig(), enricher.Run)) }
