package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	deploy "picket/deploy/kubernetes/sensor"
)

func newSeccomp() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "seccomp",
		Short: "Write the sensor's seccomp profile to where a node's kubelet or a container runtime finds it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				_, err := cmd.OutOrStdout().Write(deploy.Seccomp)
				return err
			}
			// As a whole: a sensor may be starting with it.
			tmp := out + ".tmp"
			if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(tmp, deploy.Seccomp, 0o644); err != nil {
				return fmt.Errorf("seccomp profile: %w", err)
			}
			return os.Rename(tmp, out)
		},
	}
	c.Flags().StringVar(&out, "out", "", "file to write; empty: standard output")
	return c
}
