package gke

// Build is New for settings whose times are shorter than a real cloud's.
var Build = build
