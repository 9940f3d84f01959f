//go:build !linux

package testbed

import "os/exec"

// EndWithParent does nothing, because only Linux has PR_SET_PDEATHSIG. The measurements also need Linux's proc(5).
func EndWithParent(*exec.Cmd) {}
