//go:build race

package enricher

func init() { raceDetector = true }
