// Command picket-detector evaluates rules over events and raises alerts.
package main

import (
	"os"

	"picket/internal/service"
	"picket/services/detector"
)

func main() { os.Exit(service.Main("detector", detector.DefaultConfig(), detector.Run)) }
