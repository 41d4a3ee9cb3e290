// Command picket-sink writes enriched events into ClickHouse.
package main

import (
	"os"

	"picket/internal/service"
	"picket/services/sink"
)

func main() { os.Exit(service.Main("sink", sink.DefaultConfig(), sink.Run)) }
