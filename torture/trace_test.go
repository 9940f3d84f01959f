package torture

import (
	"bufio"
	"cmp"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// traced lists the system calls that change files or flush them. A question mark marks a call that a kernel may lack.
const traced = "?open,openat,?creat,write,pwrite64,?writev,?pwritev,?pwritev2,ftruncate,?truncate,?fallocate,?copy_file_range,?sendfile," +
	"?rename,?renameat,renameat2,?link,linkat,?unlink,unlinkat,?mkdir,mkdirat,?rmdir,?symlink,symlinkat," +
	"fsync,fdatasync,?sync_file_range,mmap"

// A recorder runs a process under strace, which records the changes of files below one directory.
type recorder struct {
	// inject is a system call and a number n, such as "fdatasync:4". strace kills the process before one of its threads
	// makes the call for the n-th time. It is empty for none.
	inject string

	dir     string
	trace   string // directory of strace's output files, one for each thread
	initial *disk  // the directory's content before the process ran
}

// begin returns the command line that runs the next process.
func (r *recorder) begin(t testing.TB, dir string) []string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("power cuts need strace, which only Linux has")
	}
	r.dir, r.trace = dir, t.TempDir()
	var err error
	r.initial, err = readDisk(dir)
	must(t, err)
	argv := []string{
		"strace", "-ff", "-o", filepath.Join(r.trace, "thread"), "-xx", "-y", "-s", "16777216", "-e", "signal=none",
		"--absolute-timestamps=format:unix,precision:ns", "--syscall-times=ns", "-e", "trace=" + traced,
	}
	if call, n, ok := strings.Cut(r.inject, ":"); ok {
		argv = append(argv, "--inject="+call+":signal=SIGKILL:when="+n)
	} else {
		argv = append(argv, "--seccomp-bpf") // stops only at the traced calls, but strace 6.1 cannot inject with it
	}
	return append(argv, "--")
}

// opKind is the kind of an op.
type opKind uint8

const (
	opCreate   opKind = iota + 1 // an empty file, if there is none
	opWrite                      // data at offset, or at the end if offset is negative
	opTruncate                   // to offset
	opRename                     // renames path; the field to holds the new path
	opRemove                     // path
	opMkdir
	opSymlink // makes a symbolic link at path; the field to holds its target
	opFlush   // path
)

// An op is one change that a process requested from the kernel. It took effect between begin and end, in nanoseconds
// since 1970. If end is zero, the process died during the call, and the op may or may not have taken effect.
type op struct {
	kind       opKind
	begin, end int64
	path, to   string
	data       []byte
	offset     int64
}

// ops returns the changes of the process to the files below the directory, in order.
func (r *recorder) ops(t testing.TB) []op {
	t.Helper()
	threads, err := filepath.Glob(filepath.Join(r.trace, "thread.*"))
	must(t, err)
	if len(threads) == 0 {
		t.Fatal("strace has written nothing: allow it to trace its children (ptrace(2))")
	}
	var all []op
	for _, thread := range threads {
		f, err := os.Open(thread)
		must(t, err)
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 128<<20)
		for lines.Scan() {
			o, err := r.parse(lines.Text())
			if err != nil {
				t.Fatalf("%v in %.300s", err, lines.Text())
			}
			all = append(all, o...)
		}
		must(t, lines.Err())
		must(t, f.Close())
	}
	slices.SortStableFunc(all, func(a, b op) int { return cmp.Compare(a.begin, b.begin) })
	return all
}

// A call is a line of strace: a system call, its arguments, its result and its times.
type call struct {
	name       string
	args       []string
	result     string
	begin, end int64
}

// split parses a line. Strings are in hexadecimal, so they contain no comma or bracket.
func split(line string) (c call, ok bool) {
	stamp, rest, ok := strings.Cut(line, " ")
	name, rest, called := strings.Cut(rest, "(")
	if !ok || !called {
		return c, false // a signal or the end of the thread
	}
	c.name, c.begin = name, nanoseconds(stamp)
	args, after, returned := strings.Cut(rest, ") = ")
	if !returned { // the line ends in " <unfinished ...>", " <detached ...>" or the like
		args = rest[:max(0, strings.LastIndex(rest, " <"))]
	}
	c.args = strings.Split(args, ", ")
	// strace writes "?" or an error without a name for a call that had not ended when the process died.
	if i := strings.LastIndex(after, " <"); i >= 0 && !strings.HasPrefix(after, "?") && !strings.HasPrefix(after, "-1 (errno") {
		c.result, c.end = after[:i], c.begin+nanoseconds(strings.TrimSuffix(after[i+2:], ">"))
	}
	return c, true
}

func nanoseconds(seconds string) int64 {
	whole, part, _ := strings.Cut(seconds, ".")
	s, _ := strconv.ParseInt(whole, 10, 64)
	n, _ := strconv.ParseInt((part + "000000000")[:9], 10, 64)
	return s*1e9 + n
}

// text returns the string in an argument: a quoted one, or the path of a file descriptor.
func text(arg string) string {
	for _, quotes := range []string{`""`, "<>"} {
		from, to := strings.IndexByte(arg, quotes[0]), strings.LastIndexByte(arg, quotes[1])
		if from >= 0 && to > from {
			b, _ := hex.DecodeString(strings.ReplaceAll(arg[from+1:to], `\x`, ""))
			return string(b)
		}
	}
	return ""
}

func number(arg string) int64 {
	n, _ := strconv.ParseInt(arg, 0, 64)
	return n
}

// at returns the path of a name in a directory, as in openat(2).
func at(dir, name string) string {
	if path := text(name); filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(text(dir), text(name))
}

// isTracked reports whether changes of a path are recorded. SQLite's shared memory is not tracked: SQLite never flushes
// it, and rebuilds it after a crash.
func (r *recorder) isTracked(path string) bool {
	return (path == r.dir || strings.HasPrefix(path, r.dir+"/")) && !strings.HasSuffix(path, "-shm") && !strings.HasSuffix(path, " (deleted)")
}

// parse returns the ops of a line, or none if the call changed nothing below the directory.
func (r *recorder) parse(line string) ([]op, error) {
	c, ok := split(line)
	if !ok || strings.HasPrefix(c.result, "-1 E") {
		return nil, nil
	}
	ops, err := c.ops()
	for i := range ops {
		ops[i].begin, ops[i].end = c.begin, c.end
	}
	ours := slices.DeleteFunc(ops, func(o op) bool { return !r.isTracked(o.path) })
	if err != nil && len(ours) > 0 {
		return nil, err
	}
	return ours, nil
}

// ops returns the changes that a call makes. For a call that it does not support, it returns an error, with an op for
// the path. The caller ignores the error if the path is not tracked.
func (c call) ops() ([]op, error) {
	a := append(slices.Clone(c.args), "", "", "", "", "", "")
	file := text(a[0])
	switch c.name {
	case "openat":
		var ops []op
		if strings.Contains(a[2], "O_CREAT") {
			ops = append(ops, op{kind: opCreate, path: at(a[0], a[1])})
		}
		if strings.Contains(a[2], "O_TRUNC") {
			ops = append(ops, op{kind: opTruncate, path: at(a[0], a[1])})
		}
		return ops, nil
	case "write":
		return []op{{kind: opWrite, path: file, data: []byte(text(a[1])), offset: -1}}, nil
	case "pwrite64":
		return []op{{kind: opWrite, path: file, data: []byte(text(a[1])), offset: number(a[3])}}, nil
	case "ftruncate":
		return []op{{kind: opTruncate, path: file, offset: number(a[1])}}, nil
	case "fsync", "fdatasync":
		return []op{{kind: opFlush, path: file}}, nil
	case "rename":
		return []op{{kind: opRename, path: file, to: text(a[1])}}, nil
	case "renameat", "renameat2":
		return []op{{kind: opRename, path: at(a[0], a[1]), to: at(a[2], a[3])}}, nil
	case "unlink", "rmdir":
		return []op{{kind: opRemove, path: file}}, nil
	case "unlinkat":
		return []op{{kind: opRemove, path: at(a[0], a[1])}}, nil
	case "mkdir":
		return []op{{kind: opMkdir, path: file}}, nil
	case "mkdirat":
		return []op{{kind: opMkdir, path: at(a[0], a[1])}}, nil
	case "symlink":
		return []op{{kind: opSymlink, path: text(a[1]), to: file}}, nil
	case "symlinkat":
		return []op{{kind: opSymlink, path: at(a[1], a[2]), to: file}}, nil
	case "mmap":
		if strings.Contains(a[2], "PROT_WRITE") && strings.Contains(a[3], "MAP_SHARED") {
			return []op{{path: text(a[4])}}, fmt.Errorf("strace does not see writes to a mapped file")
		}
		return nil, nil
	default:
		return []op{{path: file}}, fmt.Errorf("the system call %s is not supported", c.name)
	}
}
