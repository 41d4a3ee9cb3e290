//go:build race

package chdb

const raceDetector = true
