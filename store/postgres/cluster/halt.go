package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Dir returns the directory of the server's Unix socket, and of its data.
func (c *Cluster) Dir() string { return c.dir }

// Halt ends a server, if it runs, and keeps its data. SIGINT ends the transactions first. After SIGQUIT, the server recovers
// at the next start. SIGKILL ends all of its processes, so that [Cluster.Run] finds none of them.
func (c *Cluster) Halt(signal syscall.Signal) error {
	if c.process == nil {
		return nil
	}
	if signal != syscall.SIGKILL {
		return c.end(signal)
	}
	postmaster := c.process.Process.Pid
	if err := syscall.Kill(postmaster, syscall.SIGSTOP); err != nil { // it must not start processes meanwhile
		return err
	}
	processes, err := childrenOf(postmaster)
	for _, pid := range append(processes, postmaster) {
		if kerr := syscall.Kill(pid, syscall.SIGKILL); !errors.Is(kerr, syscall.ESRCH) {
			err = errors.Join(err, kerr)
		}
	}
	_ = c.process.Wait() // it was ended by a signal
	c.process = nil
	return err
}

// childrenOf returns the processes that a process has started.
func childrenOf(parent int) ([]int, error) {
	found, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var children []int
	for _, path := range found {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(stat), ") ") // after the name: the state, and the parent (proc(5))
		fields := strings.Fields(rest)
		if len(fields) < 2 || fields[1] != strconv.Itoa(parent) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		children = append(children, pid)
	}
	return children, nil
}
