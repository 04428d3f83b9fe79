import socket,struct
from support.probes.reporting import report
from collections import Counter
import errno
def slam(address,port):
    l=socket.socket(); l.setsockopt(1,2,1); l.bind((address,port)); l.listen(64); report("ok")
    while True:
        s,_=l.accept(); s.setsockopt(1,13,struct.pack('ii',1,0)); s.close()
def knock(address,port,n):
    c=Counter()
    for i in range(n):
        s=socket.socket()
        e=s.connect_ex((address,port)); r=''
        try: r=str(s.recv(1))
        except OSError as x: r=errno.errorcode[x.errno]
        c[f"{errno.errorcode.get(e,0)}/{r}"]+=1
        s.close()
    return dict(c)
