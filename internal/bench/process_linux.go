package bench

import (
	"os/exec"
	"syscall"
)

// endWithParent makes the kernel send SIGTERM to the process when this process ends (prctl(2), PR_SET_PDEATHSIG). The
// kernel sends it when the thread ends that started the process. Go ends a thread only if a goroutine was locked to it,
// and no goroutine here is.
func endWithParent(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
