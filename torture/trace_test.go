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

// traced are the system calls that change files, make changes durable, or could do either unseen. A question mark is for
// those that a machine's kernel may not have.
const traced = "?open,openat,?creat,write,pwrite64,?writev,?pwritev,?pwritev2,ftruncate,?truncate,?fallocate,?copy_file_range,?sendfile," +
	"?rename,?renameat,renameat2,?link,linkat,?unlink,unlinkat,?mkdir,mkdirat,?rmdir,?symlink,symlinkat," +
	"fsync,fdatasync,?sync_file_range,mmap"

// recorder has strace take down what a process does to the files below one directory.
type recorder struct {
	// inject is the system call before which strace kills the process, when one of its threads makes it for the n-th time:
	// "fdatasync:4". Empty for none.
	inject string

	dir   string
	trace string // directory of strace's files, one for each thread
	began *disk  // what the directory held
}

// begin returns the command that runs the next process.
func (r *recorder) begin(t testing.TB, dir string) []string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("power cuts need strace, which only Linux has")
	}
	r.dir, r.trace = dir, t.TempDir()
	var err error
	r.began, err = readDisk(dir)
	must(t, err)
	argv := []string{
		"strace", "-ff", "-o", filepath.Join(r.trace, "thread"), "-xx", "-y", "-s", "16777216", "-e", "signal=none",
		"--absolute-timestamps=format:unix,precision:ns", "--syscall-times=ns", "-e", "trace=" + traced,
	}
	if call, n, ok := strings.Cut(r.inject, ":"); ok {
		argv = append(argv, "--inject="+call+":signal=SIGKILL:when="+n)
	} else {
		argv = append(argv, "--seccomp-bpf") // stops at the traced calls alone, but strace 6.1 injects nothing under it
	}
	return append(argv, "--")
}

// opKind is what an op does.
type opKind uint8

const (
	opCreate   opKind = iota + 1 // a file of no content, where there is none
	opWrite                      // data at offset, or at the end where that is negative
	opTruncate                   // to offset
	opRename                     // path becomes to
	opRemove                     // path
	opMkdir
	opSymlink // path leads to to
	opFlush   // what path holds
)

// op is one change that a process asked the kernel for. It took effect between begin and end; where it has no end, the
// process died first, and nobody knows.
type op struct {
	kind       opKind
	begin, end int64
	path, to   string
	data       []byte
	offset     int64
}

// ops returns what the process has done to the files below the directory, in its order.
func (r *recorder) ops(t testing.TB) []op {
	t.Helper()
	threads, err := filepath.Glob(filepath.Join(r.trace, "thread.*"))
	must(t, err)
	if len(threads) == 0 {
		t.Fatal("strace has written nothing: it has to be allowed to trace its children (ptrace(2))")
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

// call is a line of strace: a system call, its arguments, what it returned, and when.
type call struct {
	name       string
	args       []string
	result     string
	begin, end int64
}

// split takes a line apart. Strings are in hexadecimal, so that no comma or bracket is in one.
func split(line string) (c call, ok bool) {
	stamp, rest, ok := strings.Cut(line, " ")
	name, rest, called := strings.Cut(rest, "(")
	if !ok || !called {
		return c, false // a signal, or the thread's end
	}
	c.name, c.begin = name, nanoseconds(stamp)
	args, after, returned := strings.Cut(rest, ") = ")
	if !returned { // the line ends in " <unfinished ...>", " <detached ...>" or the like
		args = rest[:max(0, strings.LastIndex(rest, " <"))]
	}
	c.args = strings.Split(args, ", ")
	// "?" and an error without a name are what strace says of a call whose end the process did not live to see.
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

// at is the path that a directory and a name in it make.
func at(dir, name string) string {
	if path := text(name); filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(text(dir), text(name))
}

// ours reports whether a path is one whose loss matters: SQLite's shared memory is never flushed, and made anew after a
// crash, so that nothing of it is kept.
func (r *recorder) ours(path string) bool {
	return (path == r.dir || strings.HasPrefix(path, r.dir+"/")) && !strings.HasSuffix(path, "-shm") && !strings.HasSuffix(path, " (deleted)")
}

// parse makes ops of a line, or none where it changed nothing here.
func (r *recorder) parse(line string) ([]op, error) {
	c, ok := split(line)
	if !ok || strings.HasPrefix(c.result, "-1 E") {
		return nil, nil
	}
	ops, err := c.ops()
	for i := range ops {
		ops[i].begin, ops[i].end = c.begin, c.end
	}
	ours := slices.DeleteFunc(ops, func(o op) bool { return !r.ours(o.path) })
	if err != nil && len(ours) > 0 {
		return nil, err
	}
	return ours, nil
}

// ops says what a call does. An error is of a call that this does not know, and matters where a path of it does.
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
			return []op{{path: text(a[4])}}, fmt.Errorf("writes to a mapped file are not seen")
		}
		return nil, nil
	default:
		return []op{{path: file}}, fmt.Errorf("the system call %s is not known here", c.name)
	}
}
