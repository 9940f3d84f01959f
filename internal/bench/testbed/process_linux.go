package testbed

import (
	"os/exec"
	"syscall"
)

// EndWithParent makes the kernel send SIGTERM to the process when this process ends (prctl(2), PR_SET_PDEATHSIG). The
// kernel sends it when the thread ends that started the process. Go ends a thread only if a goroutine was locked to it,
// and no goroutine here is.
func EndWithParent(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
}
