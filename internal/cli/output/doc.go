// Package output prints the records of a command as a table or as JSON lines, depending on --output.
package output
