//go:build !linux

package bench

import "os/exec"

// endWithParent does nothing where the kernel has no such thing. What bench reads of processes, only Linux has either.
func endWithParent(*exec.Cmd) {}
