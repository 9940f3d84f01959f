package bench

import (
	"os/exec"
	"syscall"
)

// endWithParent has the kernel end a process when this one is gone (prctl(2), PR_SET_PDEATHSIG): it is told when the thread
// that started it ends, and Go keeps its threads but those that a goroutine was locked to, of which there is none here.
func endWithParent(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
