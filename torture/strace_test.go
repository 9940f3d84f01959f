package torture

import (
	"encoding/hex"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"
)

func TestParseStraceLines(t *testing.T) {
	x := func(text string) string {
		digits := hex.EncodeToString([]byte(text))
		var b strings.Builder
		for i := 0; i < len(digits); i += 2 {
			b.WriteString(`\x` + digits[i:i+2])
		}
		return b.String()
	}
	file, other := "3<"+x("/d/f")+">", "4<"+x("/elsewhere")+">"
	r := &recorder{dir: "/d"}
	for line, want := range map[string][]op{
		`pwrite64(` + file + `, "` + x("ab, )") + `", 5, 7) = 5 <0.000000002>`:                                                     {{kind: opWrite, begin: 1e9 + 3, end: 1e9 + 5, path: "/d/f", data: []byte("ab, )"), offset: 7}},
		`pwrite64(` + file + `, "` + x("ab") + `", 2, 7 <detached ...>`:                                                            {{kind: opWrite, begin: 1e9 + 3, path: "/d/f", data: []byte("ab"), offset: 7}},
		`pwrite64(` + file + `, "` + x("ab") + `", 2, 7 <unfinished ...>`:                                                          {{kind: opWrite, begin: 1e9 + 3, path: "/d/f", data: []byte("ab"), offset: 7}},
		`pwrite64(` + file + `, "` + x("ab") + `", 2, 7) = ?`:                                                                      {{kind: opWrite, begin: 1e9 + 3, path: "/d/f", data: []byte("ab"), offset: 7}},
		`pwrite64(` + file + `, "` + x("ab") + `", 2, 7) = -1 (errno 18446744073709551615) <0.000000001>`:                          {{kind: opWrite, begin: 1e9 + 3, path: "/d/f", data: []byte("ab"), offset: 7}},
		`pwrite64(` + file + `, "` + x("ab") + `", 2, 7) = -1 ENOSPC (No space left on device) <0.000000001>`:                      nil,
		`pwrite64(` + other + `, "` + x("ab") + `", 2, 7) = 2 <0.000000001>`:                                                       nil,
		`fsync(` + file + `) = 0 <0.000000009>`:                                                                                    {{kind: opFlush, begin: 1e9 + 3, end: 1e9 + 12, path: "/d/f"}},
		`fdatasync(` + file + ` <detached ...>`:                                                                                    {{kind: opFlush, begin: 1e9 + 3, path: "/d/f"}},
		`openat(AT_FDCWD<` + x("/d") + `>, "` + x("g") + `", O_RDWR|O_CREAT, 0600) = 3<> <0.000000001>`:                            {{kind: opCreate, begin: 1e9 + 3, end: 1e9 + 4, path: "/d/g"}},
		`renameat(AT_FDCWD<` + x("/") + `>, "` + x("/d/f") + `", AT_FDCWD<` + x("/") + `>, "` + x("/d/g") + `") = 0 <0.000000001>`: {{kind: opRename, begin: 1e9 + 3, end: 1e9 + 4, path: "/d/f", to: "/d/g"}},
		`symlinkat("` + x("gen-1") + `", AT_FDCWD<` + x("/") + `>, "` + x("/d/l") + `") = 0 <0.000000001>`:                         {{kind: opSymlink, begin: 1e9 + 3, end: 1e9 + 4, path: "/d/l", to: "gen-1"}},
		`mmap(NULL, 32768, PROT_READ|PROT_WRITE, MAP_SHARED, 4<` + x("/d/s-shm") + `>, 0) = 0x7f <0.000000001>`:                    nil,
		`mmap(NULL, 32768, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f <0.000000001>`:                           nil,
		`+++ killed by SIGKILL +++`: nil,
	} {
		if got, err := r.parse("1.000000003 " + line); err != nil || (len(got) > 0 || len(want) > 0) && !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", line, got, err)
		}
	}
	for _, line := range []string{
		`mmap(NULL, 32768, PROT_READ|PROT_WRITE, MAP_SHARED, ` + file + `, 0) = 0x7f <0.000000001>`,
		`fallocate(` + file + `, 0, 0, 100) = 0 <0.000000001>`,
	} {
		if got, err := r.parse("1.000000003 " + line); err == nil {
			t.Errorf("%s: %+v", line, got)
		}
	}
}

// TestDurableOps checks that a flush covers only operations on the same file or directory that had ended before it
// began, and only if the flush itself has ended.
func TestDurableOps(t *testing.T) {
	file := func() *node { return &node{} }
	for name, c := range map[string]struct {
		ops  []op
		want []bool
	}{
		"flushed":                            {[]op{{opWrite, 1, 2, "/d/f", "", nil, 0}, {opFlush, 3, 4, "/d/f", "", nil, 0}}, []bool{true, false}},
		"flushed while it was written":       {[]op{{opWrite, 1, 4, "/d/f", "", nil, 0}, {opFlush, 3, 5, "/d/f", "", nil, 0}}, []bool{false, false}},
		"the flush did not complete":         {[]op{{opWrite, 1, 2, "/d/f", "", nil, 0}, {opFlush, 3, 0, "/d/f", "", nil, 0}}, []bool{false, false}},
		"another file's flush":               {[]op{{opWrite, 1, 2, "/d/f", "", nil, 0}, {opFlush, 3, 4, "/d/g", "", nil, 0}}, []bool{false, false}},
		"written after the flush":            {[]op{{opFlush, 1, 2, "/d/f", "", nil, 0}, {opWrite, 3, 4, "/d/f", "", nil, 0}}, []bool{false, false}},
		"a new name, flush of the file":      {[]op{{opCreate, 1, 2, "/d/new", "", nil, 0}, {opFlush, 3, 4, "/d/new", "", nil, 0}}, []bool{false, false}},
		"a new name, flush of its directory": {[]op{{opCreate, 1, 2, "/d/new", "", nil, 0}, {opFlush, 3, 4, "/d", "", nil, 0}}, []bool{true, false}},
		"renamed, then flushed by the new name": {
			[]op{{opWrite, 1, 2, "/d/f", "", nil, 0}, {opRename, 3, 4, "/d/f", "/d/h", nil, 0}, {opFlush, 5, 6, "/d/h", "", nil, 0}}, []bool{true, false, false},
		},
	} {
		began := &disk{map[string]*node{"/d": {kind: fs.ModeDir}, "/d/f": file(), "/d/g": file()}}
		if got := durable(began, c.ops); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
