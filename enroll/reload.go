package enroll

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// reloadPending reports whether the programs that use the files have yet to learn of the pair in use.
func (a *Agent) reloadPending() bool {
	p := a.Pair()
	return len(a.config.Reload) > 0 && p != nil && a.status.Reloaded != p.Serial()
}

// reload runs the reload command, if it is pending, and records how it ended. Whatever the command does, the credential
// stays in use.
func (a *Agent) reload(ctx context.Context) {
	if !a.reloadPending() {
		return
	}
	p := a.Pair()
	err := run(ctx, a.config.Reload, a.config.ReloadOutput, deadline(p, a.now()))
	switch {
	case err != nil && ctx.Err() != nil:
		return // the agent is stopping: the next one runs it
	case err != nil:
		a.reloading.fail(err, p, a.now())
		a.status.ReloadFailure, a.status.ReloadAt = a.reloading.failure(err), a.reloading.next()
		a.config.Log.Error("reload command failed, retrying; the new credential stays in use", "command", strings.Join(a.config.Reload, " "),
			"error", err, "tries", a.reloading.tries, "next_try", a.reloading.next().Format(time.RFC3339))
	default:
		a.reloading = retry{}
		a.status.Reloaded, a.status.ReloadFailure, a.status.ReloadAt = p.Serial(), nil, time.Time{}
	}
	a.report()
}

// run runs a command in a process group of its own and waits for it to exit, not for its children: it may start a
// daemon, which keeps the output. If the command exceeds the limit, run kills the whole group.
func run(ctx context.Context, argv []string, output *os.File, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it did not exit within %s, and was killed with its children", limit.Round(time.Second)))
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if output != nil { // a nil *os.File is no nil io.Writer
		cmd.Stdout, cmd.Stderr = output, output
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	err := cmd.Run()
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
