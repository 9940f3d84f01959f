// Package memory sets the Go runtime's memory limit from the cgroup of the process. Near the limit, the garbage
// collector runs more often, so that the kernel need not kill the process. It reads cgroups version 2, which systemd's
// MemoryMax sets.
package memory

import (
	"io/fs"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// share is the part of the cgroup's memory that the Go runtime may use, in per cent. C libraries and the page cache
// need the rest.
const share = 75

// SetLimit sets the soft memory limit of the Go runtime to a share of the cgroup's limit. It changes nothing if
// GOMEMLIMIT is set or the cgroup has no limit.
func SetLimit() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	if limit := cgroupLimit(os.DirFS("/")); limit < math.MaxInt64 {
		debug.SetMemoryLimit(limit / 100 * share)
	}
}

// cgroupLimit returns the lowest memory.max of this process's cgroup and its parents, in bytes. Without a limit it
// returns math.MaxInt64.
func cgroupLimit(root fs.FS) int64 {
	limit := int64(math.MaxInt64)
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return limit
	}
	for line := range strings.Lines(string(groups)) {
		group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::/")
		if !ok {
			continue
		}
		for dir := path.Clean(group); ; dir = path.Dir(dir) {
			text, err := fs.ReadFile(root, path.Join("sys/fs/cgroup", dir, "memory.max"))
			// Otherwise the file contains "max".
			if n, perr := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && perr == nil {
				limit = min(limit, n)
			}
			if dir == "." {
				break
			}
		}
	}
	return limit
}
