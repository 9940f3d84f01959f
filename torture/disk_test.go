package torture

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sector is the size in bytes of the unit that a disk writes atomically.
const sector = 512

// A node is a file, a directory or a symbolic link.
type node struct {
	kind    fs.FileMode // 0 for a file, fs.ModeDir, fs.ModeSymlink
	content []byte
	link    string
}

// A disk is the content of a directory, by path.
type disk struct {
	nodes map[string]*node
}

func readDisk(dir string) (*disk, error) {
	d := &disk{nodes: map[string]*node{}}
	return d, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n := &node{kind: e.Type()}
		switch {
		case e.Type() == fs.ModeSymlink:
			n.link, err = os.Readlink(path)
		case e.Type().IsRegular():
			n.content, err = os.ReadFile(path)
		}
		d.nodes[path] = n
		return err
	})
}

// write replaces a directory with the content of the disk.
func (d *disk) write(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(d.nodes)) { // a directory sorts before its content
		if _, ok := d.nodes[filepath.Dir(path)]; path != dir && !ok {
			continue // its directory was lost
		}
		var err error
		switch n := d.nodes[path]; n.kind {
		case fs.ModeDir:
			err = os.Mkdir(path, 0o700)
		case fs.ModeSymlink:
			err = os.Symlink(n.link, path)
		default:
			err = os.WriteFile(path, n.content, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// clone returns a deep copy.
func (d *disk) clone() *disk {
	c := &disk{nodes: map[string]*node{}}
	for path, n := range d.nodes {
		copied := *n
		copied.content = slices.Clone(n.content)
		c.nodes[path] = &copied
	}
	return c
}

// apply makes a change if it is possible. A file or directory that it needs may have been lost.
func (d *disk) apply(o op) {
	n := d.nodes[o.path]
	switch {
	case o.kind == opCreate && n == nil:
		d.nodes[o.path] = &node{}
	case o.kind == opMkdir && n == nil:
		d.nodes[o.path] = &node{kind: fs.ModeDir}
	case o.kind == opSymlink && n == nil:
		d.nodes[o.path] = &node{kind: fs.ModeSymlink, link: o.to}
	case n == nil:
	case o.kind == opRename:
		delete(d.nodes, o.path)
		d.nodes[o.to] = n
	case o.kind == opRemove:
		delete(d.nodes, o.path)
	default:
		n.apply(o)
	}
}

func (n *node) apply(o op) {
	switch o.kind {
	case opTruncate:
		n.resize(o.offset)
	case opWrite:
		at := o.offset
		if at < 0 {
			at = int64(len(n.content))
		}
		n.resize(max(int64(len(n.content)), at+int64(len(o.data))))
		copy(n.content[at:], o.data)
	}
}

func (n *node) resize(size int64) {
	if size <= int64(len(n.content)) {
		n.content = n.content[:size]
		return
	}
	n.content = append(n.content, make([]byte, size-int64(len(n.content)))...)
}

// durable returns for each operation whether a flush has made it durable. A flush of a file covers its content, and a
// flush of a directory the names in it. A flush covers only operations that had ended before it began, and only if it
// has ended itself.
func durable(began *disk, ops []op) []bool {
	live := began.clone()
	flushed := make([]bool, len(ops))
	content := map[*node][]int{} // ops not flushed yet, by file
	names := map[string][]int{}  // ops on names not flushed yet, by directory
	files := map[int]*node{}     // the file of each write, independent of later renames
	for i, o := range ops {
		n := live.nodes[o.path]
		switch o.kind {
		case opWrite, opTruncate:
			files[i] = n
			content[n] = append(content[n], i)
		case opFlush:
			if o.end == 0 || n == nil {
				continue
			}
			waiting := content[n]
			if n.kind == fs.ModeDir {
				waiting = names[o.path]
			}
			for _, w := range waiting {
				flushed[w] = flushed[w] || ops[w].end > 0 && ops[w].end <= o.begin
			}
		case opCreate:
			if n != nil {
				flushed[i] = true // the file existed, so nothing changes
				continue
			}
			names[filepath.Dir(o.path)] = append(names[filepath.Dir(o.path)], i)
		default:
			names[filepath.Dir(o.path)] = append(names[filepath.Dir(o.path)], i)
		}
		live.apply(o)
	}
	return flushed
}

// A powerCut describes which of the operations that were not flushed are lost.
type powerCut struct {
	random      *rand.Rand
	keep        float64 // the share of them that is kept, 0 to 1
	tear        float64 // the share of the kept writes of which only some sectors are kept, 0 to 1
	ignoreFlush bool    // the disk ignored the flushes of the second half of all operations
	unflushed   string  // the disk ignored flushes of files whose names contain this
}

// String returns the shares that are kept and torn.
func (c powerCut) String() string {
	return fmt.Sprintf("keeping %.0f %% of the changes that were not flushed, tearing %.0f %% of these writes", 100*c.keep, 100*c.tear)
}

// randomCut returns a random powerCut.
func randomCut(r *rand.Rand) powerCut {
	shares := []float64{0, 0.5, 0.9, 1}
	return powerCut{random: childRand(r), keep: shares[r.IntN(len(shares))], tear: shares[r.IntN(3)]}
}

// cutPower replaces the recorded directory with what a power cut at the end of the process may leave of it. It returns
// the number of changes, and the number of those that were not flushed.
func (r *recorder) cutPower(t testing.TB, c powerCut) (changes, open int) {
	t.Helper()
	ops := r.ops(t)
	flushed := durable(r.initial, ops)
	if c.ignoreFlush {
		clear(flushed[len(flushed)/2:])
	}
	for i, o := range ops {
		if c.unflushed != "" && o.kind == opWrite && strings.Contains(o.path, c.unflushed) {
			flushed[i] = false
		}
	}
	r.check(t, ops)
	after := r.initial.clone()
	for i, o := range ops {
		switch {
		case o.kind == opFlush:
			continue
		case flushed[i]:
			after.apply(o)
			continue
		case c.random.Float64() >= c.keep:
		case o.kind == opWrite && o.offset >= 0 && c.random.Float64() < c.tear:
			c.writeSectors(after, o)
		default:
			after.apply(o)
		}
		open++
	}
	must(t, after.write(r.dir))
	return len(ops), open
}

// check fails the test if the recorded changes do not produce the files on the disk, because the recorder missed one.
func (r *recorder) check(t testing.TB, ops []op) {
	t.Helper()
	made := r.initial.clone()
	uncertain := map[string]bool{} // paths with a change during which the process died
	for _, o := range ops {
		made.apply(o)
		if o.end == 0 {
			uncertain[o.path], uncertain[o.to] = true, true
		}
	}
	real, err := readDisk(r.dir)
	must(t, err)
	for path := range real.nodes {
		made.nodes[path] = cmp.Or(made.nodes[path], &node{kind: fs.ModeIrregular})
	}
	for path, n := range made.nodes {
		is := cmp.Or(real.nodes[path], &node{kind: fs.ModeIrregular})
		if r.isTracked(path) && !uncertain[path] && (is.kind != n.kind || is.link != n.link || !bytes.Equal(is.content, n.content)) {
			t.Errorf("%s differs from the result of the recorded changes: %d bytes, want %d", path, len(is.content), len(n.content))
		}
	}
}

// writeSectors writes a random part of the sectors of a write.
func (c powerCut) writeSectors(d *disk, o op) {
	for from := int64(0); from < int64(len(o.data)); {
		to := min(int64(len(o.data)), (o.offset+from)/sector*sector+sector-o.offset)
		if c.random.IntN(2) == 0 {
			d.apply(op{kind: opWrite, path: o.path, data: o.data[from:to], offset: o.offset + from})
		}
		from = to
	}
}
