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

// sector is what a disk writes whole or not at all.
const sector = 512

// node is a file, a directory or a symbolic link.
type node struct {
	kind    fs.FileMode // 0 for a file, fs.ModeDir, fs.ModeSymlink
	content []byte
	link    string
}

// disk is what a directory holds, by path.
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

// write puts a disk's content in place of what is there.
func (d *disk) write(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(d.nodes)) { // a directory comes before what is in it
		if _, ok := d.nodes[filepath.Dir(path)]; path != dir && !ok {
			continue // its directory was lost, and it with that
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

// clone copies a disk. Its nodes are others.
func (d *disk) clone() *disk {
	c := &disk{nodes: map[string]*node{}}
	for path, n := range d.nodes {
		copied := *n
		copied.content = slices.Clone(n.content)
		c.nodes[path] = &copied
	}
	return c
}

// apply makes a change, if it can be made: what it builds on may have been lost.
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

// durable says of each op whether a flush has made it last: of the file for its content, and of the directory for the
// names in it. Only what had ended before a flush began is in it, and only a flush that has ended counts.
func durable(began *disk, ops []op) []bool {
	live := began.clone()
	lasts := make([]bool, len(ops))
	content := map[*node][]int{} // ops that wait for a flush
	names := map[string][]int{}  // the same, by directory
	files := map[int]*node{}     // what a write has written to, whatever it is called now
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
				lasts[w] = lasts[w] || ops[w].end > 0 && ops[w].end <= o.begin
			}
		case opCreate:
			if n != nil {
				lasts[i] = true // it was there, and nothing changes
				continue
			}
			names[filepath.Dir(o.path)] = append(names[filepath.Dir(o.path)], i)
		default:
			names[filepath.Dir(o.path)] = append(names[filepath.Dir(o.path)], i)
		}
		live.apply(o)
	}
	return lasts
}

// cut is how a power cut treats what was not flushed.
type cut struct {
	random *rand.Rand
	keep   float64 // the share of it that is there all the same
	tear   float64 // the share of the writes among that of which only some sectors are
	lies   bool    // the disk has flushed nothing of the last half
	tears  string  // the disk has flushed no content of files with this in their names
}

// String says how.
func (c cut) String() string {
	return fmt.Sprintf("keeping %.0f %% of what was not flushed, tearing %.0f %%", 100*c.keep, 100*c.tear)
}

// drawnCut is a cut of a random kind.
func drawnCut(r *rand.Rand) cut {
	shares := []float64{0, 0.5, 0.9, 1}
	return cut{random: child(r), keep: shares[r.IntN(len(shares))], tear: shares[r.IntN(3)]}
}

// power gives the recorded directory the content that it may have after a power cut at the process's end. It returns
// how many changes there were, and how many of them were not flushed.
func (r *recorder) power(t testing.TB, c cut) (changes, open int) {
	t.Helper()
	ops := r.ops(t)
	lasts := durable(r.began, ops)
	if c.lies {
		clear(lasts[len(lasts)/2:])
	}
	for i, o := range ops {
		if c.tears != "" && o.kind == opWrite && strings.Contains(o.path, c.tears) {
			lasts[i] = false
		}
	}
	r.check(t, ops)
	after := r.began.clone()
	for i, o := range ops {
		switch {
		case o.kind == opFlush:
			continue
		case lasts[i]:
			after.apply(o)
			continue
		case c.random.Float64() >= c.keep:
		case o.kind == opWrite && o.offset >= 0 && c.random.Float64() < c.tear:
			c.torn(after, o)
		default:
			after.apply(o)
		}
		open++
	}
	must(t, after.write(r.dir))
	return len(ops), open
}

// check fails where the changes do not make the files what they are: then the recorder has missed one.
func (r *recorder) check(t testing.TB, ops []op) {
	t.Helper()
	made := r.began.clone()
	unsure := map[string]bool{} // the process died in a change
	for _, o := range ops {
		made.apply(o)
		if o.end == 0 {
			unsure[o.path], unsure[o.to] = true, true
		}
	}
	real, err := readDisk(r.dir)
	must(t, err)
	for path := range real.nodes {
		made.nodes[path] = cmp.Or(made.nodes[path], &node{kind: fs.ModeIrregular})
	}
	for path, n := range made.nodes {
		is := cmp.Or(real.nodes[path], &node{kind: fs.ModeIrregular})
		if r.ours(path) && !unsure[path] && (is.kind != n.kind || is.link != n.link || !bytes.Equal(is.content, n.content)) {
			t.Errorf("%s is not what the recorded changes make of it: %d octets for %d", path, len(is.content), len(n.content))
		}
	}
}

// torn writes some of the sectors.
func (c cut) torn(d *disk, o op) {
	for from := int64(0); from < int64(len(o.data)); {
		to := min(int64(len(o.data)), (o.offset+from)/sector*sector+sector-o.offset)
		if c.random.IntN(2) == 0 {
			d.apply(op{kind: opWrite, path: o.path, data: o.data[from:to], offset: o.offset + from})
		}
		from = to
	}
}
