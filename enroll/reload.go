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

// reloadPending reports whether the reload command must still run for the pair in use.
func (a *Agent) reloadPending() bool {
	p := a.Pair()
	if len(a.config.Reload) == 0 || p == nil {
		return false
	}
	return a.status.Reloaded != p.Serial() || a.status.ReloadedBundle != p.Origin.BundleRevision
}

// reload runs the reload command if it is pending, and records the result. If the command fails, the new credential
// stays in use.
func (a *Agent) reload(ctx context.Context) {
	if !a.reloadPending() {
		return
	}
	p := a.Pair()
	err := run(ctx, a.config.Reload, a.config.ReloadOutput, timeoutFor(p, a.now()))
	switch {
	case err != nil && ctx.Err() != nil:
		return // the agent is stopping; after the next start the command runs again
	case err != nil:
		a.reloading.fail(err, p, a.now())
		a.status.ReloadFailure, a.status.ReloadAt = a.reloading.failure(err), a.reloading.next()
		a.config.Log.Error("reload command failed, retrying; the new credential stays in use", "command", strings.Join(a.config.Reload, " "),
			"error", err, "tries", a.reloading.tries, "next_try", a.reloading.next().Format(time.RFC3339))
	default:
		a.reloading = retry{}
		a.status.Reloaded, a.status.ReloadedBundle = p.Serial(), p.Origin.BundleRevision
		a.status.ReloadFailure, a.status.ReloadAt = nil, time.Time{}
	}
	a.report()
}

// run runs a command in a new process group, and waits for it to exit. It does not wait for the command's children: a
// daemon that the command starts may keep the output open. If the command runs longer than limit, run kills the whole
// group.
func run(ctx context.Context, argv []string, output *os.File, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it did not exit within %s, and was killed with "+
		"its children", limit.Round(time.Second)))
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if output != nil { // as an io.Writer, a nil *os.File would not be nil
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
