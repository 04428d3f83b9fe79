// A client and a server whose system calls are not libc's: see greet.c, which this is like.
// The client makes 20 connections at once, from as many goroutines.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(where string) {
	listener, err := net.Listen("tcp", where)
	check(err)
	fmt.Println("\"listening\"")
	for {
		conn, err := listener.Accept()
		check(err)
		go func() {
			fmt.Fprint(conn, conn.RemoteAddr())
			conn.Close()
		}()
	}
}

func visit(where string) {
	conn, err := net.Dial("tcp", where)
	check(err)
	defer conn.Close()
	told, err := io.ReadAll(conn)
	check(err)
	fmt.Printf("%s %s %s\n", told, conn.LocalAddr(), conn.RemoteAddr())
}

func main() {
	where := net.JoinHostPort(os.Args[2], os.Args[3])
	if os.Args[1] == "server" {
		serve(where)
	}
	var group sync.WaitGroup
	for i := 0; i < 20; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			visit(where)
		}()
	}
	group.Wait()
}
