package testbed

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"syscall"
)

// Process returns a process of the measurement: this binary with the arguments of a hidden command.
func (b *Testbed) Process(ctx context.Context, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd, err := b.Program(ctx, self, args...)
	if err != nil {
		return nil, err
	}
	cmd.Args[0] = os.Args[0]
	return cmd, nil
}

// Program returns a process of the measurement. It gets the HSM's PIN on standard input, which other processes cannot
// read. It ends with ctx, and when this process ends for any reason. Until then it holds the lock of the directory, too.
func (b *Testbed) Program(ctx context.Context, path string, args ...string) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	var in bytes.Buffer
	if err := b.pin.Pass(&in); err != nil {
		return nil, err
	}
	cmd.Stdin, cmd.ExtraFiles = &in, []*os.File{b.lock}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = processTimeout
	EndWithParent(cmd)
	return cmd, nil
}
