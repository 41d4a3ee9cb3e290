// Command picket-sensor watches a node and publishes what it sees to NATS.
package main

import (
	"os"

	"picket/internal/service"
	"picket/services/sensor"
)

func main() { os.Exit(service.Main("sensor", sensor.DefaultConfig(), sensor.Run)) }
