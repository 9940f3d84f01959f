package testbed

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// ResidentMiB returns the server's current resident memory (proc(5), VmRSS).
func (s *Server) ResidentMiB() (float64, error) {
	return statusMiB(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid), "VmRSS:")
}

// PeakMiB returns the peak of the server's resident memory (proc(5), VmHWM).
func (s *Server) PeakMiB() (float64, error) {
	return statusMiB(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid), "VmHWM:")
}

// statusMiB reads a size in kB from a status file of a process (proc(5)), and returns it in MiB.
func statusMiB(path, field string) (float64, error) {
	status, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("memory was not measured: %w", err)
	}
	for line := range bytes.Lines(status) {
		if value, ok := bytes.CutPrefix(line, []byte(field)); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(string(value)), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("memory was not measured: %s has no %s", path, field)
}

// PeakMiB returns the peak of this process's resident memory (proc(5), VmHWM).
func PeakMiB() (float64, error) {
	return statusMiB("/proc/self/status", "VmHWM:")
}

// clockTicks is the number of clock ticks per second in proc(5): USER_HZ, which is 100 on every architecture that Go
// supports.
const clockTicks = 100

// CPU returns the processor time that the server has used so far.
func (s *Server) CPU() (time.Duration, error) { return CPUOf(s.cmd.Process) }

// CPUOf returns the processor time that a process has used so far (proc(5), utime and stime), to a hundredth of a
// second.
func CPUOf(p *os.Process) (time.Duration, error) {
	path := fmt.Sprintf("/proc/%d/stat", p.Pid)
	stat, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("processor time was not measured: %w", err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from field 3 on; field 2, the name, may contain spaces
	if len(fields) < 13 {
		return 0, fmt.Errorf("processor time was not measured: %s has %d fields", path, len(fields))
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * time.Second / clockTicks, err
}
